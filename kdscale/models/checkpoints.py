"""Tensors out of a weights file: safetensors, or a torch checkpoint that runs no code."""

import json
import logging
import re
import shlex
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
from kdscale.models import checksums
from kdscale.regular_files import check_regular

log = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin")
_OURS = {"model", "num_classes", "preprocess"}
"""Keys of the metadata of every weights file that kdscale writes."""
_DAMAGE_OF_SAFETENSORS = (SafetensorError, RuntimeError, *DAMAGE)
_NESTS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
# What a truncated or foreign file raises; any other refusal means that the file wants a function.
_DAMAGE = re.compile(r"invalid load key|Unsupported operand|Ran out of input|stack underflow")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's tensors (on the CPU) and its decoded metadata.

    Raises:
        WeightsError: the file is missing, of an unknown kind, damaged, or would run code.
    """
    _check_exists(path)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    return _state_dict_of(_load_checkpoint(path), path), {}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what `save_weights` was given as metadata; {} for a torch checkpoint.

    Reads the header alone. Values that are not JSON stay strings.

    Raises:
        WeightsError: the file is missing, of an unknown kind or damaged.
    """
    path = Path(path)
    _check_exists(path)
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            checksums.check_metadata(file.metadata() or {})
            stated = _decoded(file.metadata())
    except _DAMAGE_OF_SAFETENSORS as error:
        raise _damaged(path, error) from error
    stated.pop(module_versions.KEY, None)
    return stated


def _check_exists(path: Path) -> None:
    check_regular(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}: correct the path, or train it first")
    if path.suffix.lower() not in (".safetensors", *CHECKPOINT_SUFFIXES):
        raise WeightsError(
            f"{path} is a {path.suffix or 'nameless'} file, wanted .safetensors, or a torch "
            f"checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})"
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
            stated = file.metadata() or {}
            checked = checksums.check_tensors(stated, tensors)
            metadata = _decoded(stated)
    except _DAMAGE_OF_SAFETENSORS as error:
        raise _damaged(path, error) from error
    if not checked and metadata.keys() >= _OURS:
        log.info("%s is of an earlier kdscale, without checksums: it cannot be checked", path)
    return _without_wrappers(tensors), metadata


def _load_checkpoint(path: Path) -> Any:
    try:
        # The one place that opens checkpoints, and only in the mode that runs no code.
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except UnpicklingError as error:
        if _DAMAGE.search(str(error)):
            raise _damaged(path, error) from error
        raise _would_run_code(path, str(error)) from error
    except RuntimeError as error:
        if "weights_only=True" in str(error):  # TorchScript, and torch's oldest format
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
    return _without_wrappers({str(key): value for key, value in checkpoint.items()})


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _decoded(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    said = (metadata or {}).items()
    return {key: _from_json(value) for key, value in said if key not in checksums.KEYS}


def _from_json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return WeightsError(
        f"{path} ({path.stat().st_size} bytes) is damaged or not a {path.suffix} file: {reason}: "
        "copy or download it again"
    )


def _would_run_code(path: Path, reason: str) -> WeightsError:
    found = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", reason)
    wants = f" (it wants {found[1] or found[2]})" if found else ""
    return WeightsError(
        f"{path} is refused: opening it would run code{wants}; convert it to safetensors where you "
        f"trust it: {_conversion(path)}"
    )


def _conversion(path: Path) -> str:
    """Return a shell command that converts a checkpoint which the user trusts."""
    script = (
        "import sys, torch, safetensors.torch as st; "
        "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
        "c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) else c; "
        "c = c.state_dict() if hasattr(c, 'state_dict') else c; "
        "st.save_file({k: v.clone().contiguous() for k, v in c.items()}, sys.argv[2])"
    )
    target = path.with_suffix(".safetensors")
    return f'python -c "{script}" {shlex.quote(str(path))} {shlex.quote(str(target))}'
