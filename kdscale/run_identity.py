"""The identity of a run: stated by each file that a run writes, compared when one is read.

`run.json` says what is trained, and holds the checksums of the other files that are written before
the first step: recipe, content and pretrained weights. Its own checksum therefore stands for all
that decides a run. The files that follow (checkpoints, log, weights, result, evaluations) state it
under the key `run_id`, and a file that states another run than that of its folder is refused.

The folder of a whole recipe or of a sweep has no `run.json`: its identity is its recipe's checksum.
Folders of earlier versions of kdscale have none, and neither do their files.
"""

from pathlib import Path
from typing import Any

from kdscale.documents import DAMAGE, checksum_of, read_object
from kdscale.errors import KdscaleError, RunError
from kdscale.regular_files import read_document

RUN_ID = "run_id"
"""Key of the identity in JSON files, in lines of a log and in the metadata of weights."""
START = "start"
"""Key in `run.json`: checksums of the other files of the start, by name."""
RUN_FILE, RECIPE_FILE = "run.json", "recipe.toml"
WEIGHTS_FILES = ("weights.safetensors", "best.safetensors", "ema.safetensors")
"""Names of a run's weights: those of the last step, and those that are best on validation."""
RECIPE_SUM = "# SHA-256 of the lines above: "
"""Beginning of the last line of a recipe that kdscale wrote."""
_DIGITS = 16


def run_id(folder: Path) -> str | None:
    """Return the identity of the run in a folder, such as `student-cache-seed0-3fa9c0de12ab34cd`.

    Returns:
        None if the folder is no run's, or is one of an earlier version of kdscale.

    Raises:
        RunError: `run.json` is damaged.
        UnsafePathError: it is a special file.
    """
    job = _job(folder)
    if job is None:
        digest = recipe_sum(folder)
        return None if digest is None else f"recipe-{digest[:_DIGITS]}"
    if START not in job:
        return None
    model, targets, seed = (job.get(key) for key in ("model", "targets", "seed"))
    return f"{model}-{targets}-seed{seed}-{checksum_of(job)[:_DIGITS]}"


def stated_run(folder: Path) -> dict[str, str]:
    """Return the entry that states a folder's run in its files; {} if the run has no identity."""
    own = run_id(folder)
    return {} if own is None else {RUN_ID: own}


def check_run(path: Path, stated: object, *, folder: Path | None = None) -> None:
    """Refuse a file of another run.

    Args:
        path: the file, for the message.
        stated: the identity that the file states; None if it states none.
        folder: the folder of the run; None = the file's own. A folder without a run accepts all.

    Raises:
        RunError: the file states another run, or none where all files of the run state it.
    """
    folder = folder or path.parent
    own, is_run = run_id(folder), (folder / RUN_FILE).exists()
    if stated == own or (not is_run and None in (stated, own)):
        return
    root = RUN_FILE if is_run else RECIPE_FILE
    raise RunError(
        f"{path} is of another run ({_described(stated)}) than {folder / root} "
        f"({_described(own)}): put back the file that was exchanged, or remove {path}"
    )


def check_start(path: Path, digest: str) -> None:
    """Refuse a file of the start of another run; `digest` is its checksum.

    Raises:
        RunError: `run.json` beside it names another checksum.
    """
    noted = (_job(path.parent) or {}).get(START, {}).get(path.name, digest)
    if noted != digest:
        raise RunError(
            f"{path} is of another run than {path.parent / RUN_FILE}: put back the file that was "
            "exchanged"
        )


def recipe_sum(folder: Path) -> str | None:
    """Return the checksum in the last line of a folder's recipe; None if there is no such line."""
    try:
        text = read_document(folder / RECIPE_FILE).decode()
    except (OSError, UnicodeDecodeError):
        return None
    return text.rpartition(RECIPE_SUM)[2].strip() if RECIPE_SUM in text else None


def _job(folder: Path) -> dict[str, Any] | None:
    """Return the content of `run.json`; None if there is none."""
    path = folder / RUN_FILE
    try:
        job = read_object(path)  # a link is followed: the weights beside it may be one, too
        if not isinstance(job.get(START, {}), dict):
            raise ValueError(f"{START} is no JSON object")
        return job
    except (FileNotFoundError, NotADirectoryError):
        return None
    except KdscaleError:
        raise
    except DAMAGE as error:
        raise RunError(f"{path} is damaged ({str(error)[:300]}): name another --run") from None


def _described(identity: object) -> str:
    return "it states none" if identity is None else str(identity)[:100]
