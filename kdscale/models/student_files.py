"""Files of a student's folder, here or on the Hub, and whether they belong together.

    model.safetensors          weights, and what rebuilds the model, see `load_student`
    config.json                the model as timm or transformers describes it
    preprocessor_config.json   the preprocessing, for transformers
    README.md                  the model card

The header of the weights states the SHA-256 of the two JSON files under the key `files`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from kdscale.errors import WeightsError
from kdscale.hub import CARD, HubRepository, is_hub
from kdscale.regular_files import read_document
from kdscale.run_identity import WEIGHTS_FILES

WEIGHTS = "model.safetensors"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
FILES = (CARD, CONFIG, PROCESSOR, WEIGHTS)
"""Names of a student's files; the weights, which complete it, last."""
MODEL_OF_FOLDER = "transformers/."
"""Name that weights state for the model that config.json beside them describes."""


def find_weights(place: str | Path) -> Path:
    """Return the weights file of a student: of a repository of the Hub, a folder, or itself.

    Raises:
        WeightsError: there is none in the repository or folder.
        ConfigError: the URL names no repository.
        StorageError: the repository is not there, or the Hub is not reached.
    """
    if is_hub(place):
        return _downloaded(str(place))
    path = Path(place).expanduser()
    if not path.is_dir():
        return path
    names = (WEIGHTS, WEIGHTS_FILES[0])
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise WeightsError(
            f"{path} holds neither {' nor '.join(names)}: name the folder of a finished run, or "
            "what `kdscale pull` wrote"
        )
    return found


def _downloaded(url: str) -> Path:
    path = HubRepository.parse(url, "model").download(files=FILES) / WEIGHTS
    if not path.is_file():
        raise WeightsError(f"{url} has no {WEIGHTS}: wanted a student that `kdscale push` uploaded")
    return path


def sums_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the JSON files in a folder, by name."""
    names = (name for name in (CONFIG, PROCESSOR) if (folder / name).exists())
    return {name: hashlib.sha256(read_document(folder / name)).hexdigest() for name in names}


def check_files(weights: Path, sums: Mapping[str, str]) -> None:
    """Compare the files beside a student's weights with the SHA-256 that those state.

    Raises:
        WeightsError: one is missing, or is not the one that was uploaded with the weights.
    """
    found = sums_of(weights.parent)
    wrong = sorted(name for name, digest in sums.items() if found.get(name) != digest)
    if wrong:
        raise WeightsError(
            f"{weights.parent / wrong[0]} is missing or is not of {weights.name} beside it: its "
            "SHA-256 is not the one that the weights state; pull the student again"
        )
