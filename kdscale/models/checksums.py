"""Checksums in the header of a weights file: of its metadata, and of its tensors.

kdscale writes two keys beside the others. `tensors_sha256` is `state_sha256` of the tensors, and
`checksum` the SHA-256 of the canonical JSON of all other metadata, `tensors_sha256` included. A
file that has one of the two keys must have both; a file that has neither is of another program, or
of an earlier kdscale, and cannot be checked.
"""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from kdscale.documents import CHECKSUM, checksum_of

TENSORS = "tensors_sha256"
KEYS = frozenset((CHECKSUM, TENSORS))


def with_checksums(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a header's metadata with the checksums of itself and of the file's tensors."""
    signed = {**metadata, TENSORS: state_sha256(tensors)}
    return {**signed, CHECKSUM: checksum_of(signed)}


def check_metadata(metadata: Mapping[str, str]) -> bool:
    """Return whether a header has checksums, after comparing that of its metadata.

    Raises:
        ValueError: the metadata is not what was written.
    """
    if not KEYS & metadata.keys():
        return False
    if metadata.get(CHECKSUM) != checksum_of(metadata):
        raise ValueError("its header does not match its checksum")
    return True


def check_tensors(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file has checksums, after comparing both.

    Raises:
        ValueError: the metadata or the tensors are not what was written.
    """
    if not check_metadata(metadata):
        return False
    if metadata.get(TENSORS) != state_sha256(tensors):
        raise ValueError("its tensors do not match their checksum")
    return True


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of tensors by name: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
