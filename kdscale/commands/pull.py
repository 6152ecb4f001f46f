"""Pull a student from a repository of the Hugging Face Hub into a folder, and check its files."""

import logging
from pathlib import Path
from typing import Any

from kdscale.atomic_write import write_durably
from kdscale.errors import ExportError
from kdscale.models.checkpoints import read_tensors
from kdscale.models.deployable import read_statement
from kdscale.models.student_files import FILES, check_files, find_weights
from kdscale.regular_files import read_inside, read_regular

log = logging.getLogger(__name__)


def pull(url: str, folder: Path) -> dict[str, Any]:
    """Download a student, check its files against their checksums, and copy them to a folder.

    Nothing of it is run, and its model is not created.

    Args:
        url: `hf://USER/NAME[@REVISION]`.
        folder: the folder; after a stop, the same call goes on.

    Returns:
        The URL, the folder, the model's name and the bytes of the weights.

    Raises:
        ExportError: the folder has another file under one of the names.
        WeightsError: the repository has no student, or a file is not what was uploaded.
        StorageError: the repository is not there, or the Hub is not reached.
    """
    weights = find_weights(url)
    stated = read_statement(weights)
    read_tensors(weights)  # compares their checksums
    check_files(weights, stated.files)
    place = weights.parent
    found = {name: read_regular(place / name) for name in FILES if (place / name).is_file()}
    foreign = [name for name, data in found.items() if _differs(folder, name, data)]
    if foreign:
        raise ExportError(
            f"{folder / foreign[0]} is another file than the one to download: name another folder"
        )
    for name, data in found.items():
        write_durably(folder / name, data, root=folder)
    log.info("%s: complete, every checksum compared", folder)
    return {
        "url": url,
        "folder": str(folder),
        "model": stated.model,
        "bytes": weights.stat().st_size,
    }


def _differs(folder: Path, name: str, data: bytes) -> bool:
    """Whether a folder has another file under a name."""
    return (folder / name).exists() and read_inside(folder, name) != data
