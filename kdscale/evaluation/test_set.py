"""Which splits a run was trained and tested on, and where other evaluations are stored."""

from collections.abc import Iterator
from pathlib import Path

from kdscale.documents import DAMAGE
from kdscale.errors import KdscaleError
from kdscale.runs.folder import RunFolder, read_run_file


def own_test_set(evaluation: Path) -> str | None:
    """Return the fingerprint of the test split that a model was tested on while it was trained.

    Args:
        evaluation: the model's evaluation file, in its run's folder or in that of a whole recipe
            or sweep, whose runs were all tested on the same images.

    Returns:
        None where no run says so: of given weights that no student learned from yet.
    """
    return _fingerprint(evaluation, "test")


def own_training_set(evaluation: Path) -> str | None:
    """Return the fingerprint of the split that a model was trained on; None if it is not known."""
    return _fingerprint(evaluation, "dataset")


def _fingerprint(evaluation: Path, field: str) -> str | None:
    for content in _contents(evaluation.parent):
        try:
            found = read_run_file(content).get(field)
        except (KdscaleError, *DAMAGE):
            continue
        if isinstance(found, str):
            return found
    return None


def _contents(folder: Path) -> Iterator[Path]:
    run = RunFolder(folder)
    name = run.inputs_file.name
    yield run.inputs_file
    if not run.is_run:
        yield from sorted(folder.glob(f"*/{name}"))
        yield from sorted(run.trials.glob(f"*/{name}"))


def first_evaluated(usual: Path) -> str | None:
    """Return the test split that a run without one of its own was first evaluated on, if any.

    Args:
        usual: the file of the run's first evaluation.
    """
    if not RunFolder(usual.parent).is_run:
        return None
    try:
        found = read_run_file(usual).get("test_fingerprint")
    except (KdscaleError, *DAMAGE):
        return None
    return found if isinstance(found, str) else None


def evaluation_file(usual: Path, own: str | None, fingerprint: str) -> Path:
    """Return the file for an evaluation on the test split with this fingerprint.

    Args:
        usual: the file for the run's own test split.
        own: the fingerprint of that split; None if it is not known.
        fingerprint: of the split that the model is evaluated on.
    """
    if own in (None, fingerprint):
        return usual
    return usual.with_name(f"{usual.stem}-on-{fingerprint[:12]}{usual.suffix}")
