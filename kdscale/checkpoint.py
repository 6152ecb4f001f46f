"""Resumable state: a folder `step-N` that is there whole or not at all. No pickles.

Tensors are safetensors, the rest is JSON. Every process writes its own random state; the main one
writes what is shared and then publishes the folder by renaming it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdscale.durable import flush_folder, storage_error, write_durably
from kdscale.errors import RunError
from kdscale.wording import number_of

_TEMPORARY = "writing"


def write_process_state(folder: Path, process_index: int) -> None:
    """Write this process's random state into the checkpoint that is being written."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    _save(folder / _TEMPORARY / f"random-{process_index}.safetensors", state)


def write_shared_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write model, optimizer and loop state into the checkpoint that is being written."""
    tensors, rest = _split(optimizer.state_dict())
    _save(folder / _TEMPORARY / "model.safetensors", model.state_dict())
    _save(folder / _TEMPORARY / "optimizer.safetensors", tensors)
    document = json.dumps({"loop": dict(state), "optimizer": rest}, indent=1)
    write_durably(folder / _TEMPORARY / "state.json", document.encode())


def publish(folder: Path, step: int) -> None:
    """Make the written checkpoint the newest one and drop those before it."""
    older = _finished(folder)
    try:
        flush_folder(folder / _TEMPORARY)
        target = folder / f"step-{step:08d}"
        if target.exists():
            return
        (folder / _TEMPORARY).rename(target)
        flush_folder(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    for path in older:
        shutil.rmtree(path, ignore_errors=True)


def drop_unpublished(folder: Path) -> None:
    """Remove what a start that got no further had begun to write, maybe with other processes."""
    shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest finished checkpoint."""
    finished = _finished(folder)
    return finished[-1] if finished else None


def read_loop_state(path: Path) -> dict[str, Any]:
    """The loop state of a checkpoint.

    Raises:
        RunError: it is damaged.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())["loop"]
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return state


def restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    process_index: int,
    num_processes: int,
) -> None:
    """Put model, optimizer and random state back as they were.

    Raises:
        RunError: the checkpoint is damaged, of another model or of another number of processes.
    """
    wrote = len(list(path.glob("random-*.safetensors")))
    if wrote != num_processes:
        raise RunError(
            f"the checkpoint {path} was written by {number_of(wrote, 'process', 'processes')}, "
            f"each with a random state of its own, and {num_processes} are to go on: start "
            f"{wrote}, see launch/README.md"
        )
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
        rest = json.loads((path / "state.json").read_text())["optimizer"]
        optimizer.load_state_dict(_join(load_file(path / "optimizer.safetensors"), rest))
        _lay_out_as_parameters(optimizer)
        random = load_file(path / f"random-{process_index}.safetensors")
    except Exception as error:  # whatever safetensors, JSON and torch raise on damaged files
        raise _damaged(path, error) from error
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"])


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Files hold contiguous tensors; beside a parameter of another layout they would be slower."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"the checkpoint {path} cannot be used ({error}): where it is damaged, remove it and start "
        "again"
    )


def _finished(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors that share memory, as tied weights do, are each written in full."""
    kept: dict[str, Tensor] = {}
    stored = set[int]()
    for name, tensor in tensors.items():
        kept[name] = tensor.detach().cpu().contiguous()
        if (place := kept[name].untyped_storage().data_ptr()) in stored:
            kept[name] = kept[name].clone()
        stored.add(place)
    write_durably(path, save(kept))


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by dotted name, and the JSON that is left."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            kept: dict[str, Any] = tensors if isinstance(value, Tensor) else rest
            kept[f"{parameter}.{name}"] = value
    return tensors, {"param_groups": state["param_groups"], "values": rest}


def _join(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**rest["values"], **tensors}.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}
