"""Tensors out of a weights file: safetensors, or a torch checkpoint that runs no code."""

import json
import logging
import re
import shlex
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (the exception's name; nothing is unpickled)
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdscale import module_versions
from kdscale.documents import DAMAGE
from kdscale.errors import WeightsError
from kdscale.formatting import reason_of
from kdscale.models import checksums
from kdscale.regular_files import check_regular
from kdscale.run_identity import RUN_FILE, RUN_ID, WEIGHTS_FILES, check_run

log = logging.getLogger(__name__)

FORMAT = {"format": "pt"}
"""Entry of a header by which transformers recognizes tensors of PyTorch."""
_OURS = {"model", "num_classes", "preprocess"}
"""Keys of the metadata of every weights file that kdscale writes."""
_DAMAGE_OF_SAFETENSORS = (SafetensorError, RuntimeError, *DAMAGE)
_NESTS = ("state_dict", "model_state_dict", "model")
# What a truncated or foreign file raises; any other refusal means that the file wants a function.
_DAMAGE = re.compile(r"invalid load key|Unsupported operand|Ran out of input|stack underflow")
_FIRST_BYTES = 512


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file's tensors, on the CPU and under the names of the file, and its metadata.

    The content decides how it is read, not the suffix: `.pth.tar` and `.ckpt` are checkpoints, too.

    Raises:
        WeightsError: the file is missing, of an unknown kind, damaged, or would run code.
    """
    if _is_safetensors(path):
        return _read_safetensors(path)
    return _state_dict_of(_load_checkpoint(path), path), {}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what `save_weights` was given as metadata; {} for a torch checkpoint.

    Reads the header alone. Values that are not JSON stay strings.

    Raises:
        WeightsError: the file is missing, of an unknown kind or damaged.
    """
    path = Path(path)
    if not _is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            checksums.check_metadata(file.metadata() or {})
            stated = _decoded(file.metadata())
    except _DAMAGE_OF_SAFETENSORS as error:
        raise _damaged(path, error) from error
    _check_run(path, stated)
    stated.pop(module_versions.KEY, None)
    return stated


def _is_safetensors(path: Path) -> bool:
    """Whether a weights file is safetensors; False for a torch checkpoint.

    Raises:
        WeightsError: it is neither, and what it is instead.
    """
    if not path.is_file():
        check_regular(path)
        raise WeightsError(f"there is no weights file {path}: correct the path, or train it first")
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    if instead := _no_weights(first):
        raise WeightsError(f"{path} {instead}")
    header_bytes = int.from_bytes(first[:8], "little")  # may begin as a pickle does
    if first[8:9] == b"{" and header_bytes < path.stat().st_size:
        return True
    if first.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle: torch.save's two
        return False
    if path.suffix.lower() == ".safetensors":
        return True
    raise WeightsError(
        f"{path} ({path.stat().st_size} bytes) is damaged or not a weights file: wanted "
        "safetensors, or a checkpoint of torch.save: name another file, or download it again"
    )


def _no_weights(first: bytes) -> str | None:
    """What often lies in the place of weights, and what to do; None where nothing is recognised."""
    start = first.lstrip().lower()
    if not first:
        return "is empty (0 bytes), wanted weights: download it again, or train it again"
    if first.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "is a Git LFS pointer, a few lines of text in the place of the weights: run "
            "`git lfs pull` in its repository, or download the file itself"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "is a web page (HTML or XML), not weights: the download ended at a log-in or an error "
            "page; download it again"
        )
    if first.startswith(b"\x1f\x8b") or first[257:262] == b"ustar":
        return "is a compressed or tar archive: unpack it, and name the weights file within it"
    if first.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras): convert it to safetensors under the model's names"
    return None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
            stated = file.metadata() or {}
            checked = checksums.check_tensors(stated, tensors)
            metadata = _decoded(stated)
    except _DAMAGE_OF_SAFETENSORS as error:
        raise _damaged(path, error) from error
    _check_run(path, metadata)
    if not checked and metadata.keys() >= _OURS:
        log.info("%s is of an earlier kdscale, without checksums: it cannot be checked", path)
    return tensors, metadata


def _check_run(path: Path, metadata: dict[str, Any]) -> None:
    """Refuse the weights of another run in a run's folder; the identity is taken out of `metadata`.

    Raises:
        RunError: the file is of another run.
    """
    stated = metadata.pop(RUN_ID, None)
    # A recipe beside copied weights does not identify their run.
    if path.name in WEIGHTS_FILES and (path.parent / RUN_FILE).exists():
        check_run(path, stated)


def _load_checkpoint(path: Path) -> Any:
    try:
        # The one place that opens checkpoints, and only in the mode that runs no code.
        # As a file: of a path torch goes by the suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, which is refused below
            return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except UnpicklingError as error:
        if _DAMAGE.search(str(error)):
            raise _damaged(path, error) from error
        raise _would_run_code(path, str(error)) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise _torchscript(path) from error
        if "weights_only=True" in str(error):  # torch's oldest format
            raise _would_run_code(path, str(error)) from error
        raise _damaged(path, error) from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(path, error) from error


def _state_dict_of(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors inside the usual nests of a training script's checkpoint."""
    while isinstance(checkpoint, Mapping):
        nest = next((k for k in _NESTS if isinstance(checkpoint.get(k), Mapping)), None)
        if nest is None:
            break
        checkpoint = checkpoint[nest]
    if not isinstance(checkpoint, Mapping):
        raise WeightsError(
            f"{path} holds a {type(checkpoint).__name__}, wanted a state_dict (names to tensors): "
            "save model.state_dict()"
        )
    foreign = [str(key) for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if foreign:
        raise WeightsError(
            f"{path} holds {', '.join(foreign[:3])} ({len(foreign)} entries) beside tensors, "
            f"wanted names to tensors, or such a mapping under one of {', '.join(_NESTS)}"
        )
    tensors = OrderedDict((str(key), value) for key, value in checkpoint.items())
    if versions := getattr(checkpoint, "_metadata", None):  # of modules, which some read
        tensors._metadata = versions  # type: ignore[attr-defined]
    return tensors


def _decoded(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    stated = (metadata or {}).items()
    ours = (*checksums.KEYS, *FORMAT)
    return {key: _from_json(value) for key, value in stated if key not in ours}


def _from_json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path} ({path.stat().st_size} bytes) is damaged or not a {path.suffix} file: "
        f"{reason_of(error)}: copy or download it again"
    )


def _would_run_code(path: Path, reason: str) -> WeightsError:
    found = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", reason)
    wants = f" (it wants {found[1] or found[2]})" if found else ""
    return WeightsError(
        f"{path} is refused: opening it would run code{wants}; convert it to safetensors where you "
        f"trust it: {_conversion(path)}"
    )


def _torchscript(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is a TorchScript archive, a program with its weights, wanted the weights alone: "
        "opening it would run code; where you trust it, save its tensors as safetensors and name "
        f"the model that it was made from: {_conversion(path, _OF_TORCHSCRIPT)}"
    )


_OF_CHECKPOINT = (
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) else c; "
    "c = c.state_dict() if hasattr(c, 'state_dict') else c; "
)
_OF_TORCHSCRIPT = "c = torch.jit.load(sys.argv[1], map_location='cpu').state_dict(); "


def _conversion(path: Path, read: str = _OF_CHECKPOINT) -> str:
    """Return a shell command that converts a file which the user trusts."""
    script = (
        f"import sys, torch, safetensors.torch as st; {read}"
        "st.save_file({k: v.clone().contiguous() for k, v in c.items()}, sys.argv[2])"
    )
    target = path.with_suffix(".safetensors")
    return f'python -c "{script}" {shlex.quote(str(path))} {shlex.quote(str(target))}'
