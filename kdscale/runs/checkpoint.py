"""Resumable state: a folder `step-N` that is there whole or not at all. No pickles.

Tensors are safetensors, the rest is JSON; all have checksums, which are compared before anything is
read from them. Every process writes its own random state; the main one writes what is shared and
then publishes the folder by renaming it. The last two are retained, in case the newest is damaged.
"""

import logging
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kdscale.atomic_write import flush_folder, storage_error, write_durably
from kdscale.documents import DAMAGE, read_object, write_object
from kdscale.errors import RunError
from kdscale.formatting import number_of
from kdscale.module_versions import load_state, versions_of
from kdscale.regular_files import read_inside
from kdscale.run_identity import RUN_ID, check_run, stated_run

log = logging.getLogger(__name__)

_TEMPORARY, _DAMAGED = "writing", "damaged-"
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_SUMS, _GROUP = "crc32", "group"


def write_process_state(folder: Path, process_index: int) -> None:
    """Write this process's random state into the checkpoint that is being written."""
    state = stated_run(folder.parent) | {"cpu": torch.get_rng_state().numpy().tobytes().hex()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    write_object(folder / _TEMPORARY / f"random-{process_index}.json", state)


def write_shared_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write model, optimizer and loop state into the checkpoint that is being written.

    `state.json` holds the CRC-32 of the other two files, and a checksum of itself.
    """
    tensors, rest = _split(optimizer.state_dict())
    files = {_MODEL: model.state_dict(), _OPTIMIZER: tensors}
    sums = {name: _save(folder / _TEMPORARY / name, one) for name, one in files.items()}
    document = {
        "loop": dict(state), "optimizer": rest, "versions": versions_of(model), _SUMS: sums,
        **stated_run(folder.parent),
    }  # fmt: skip
    write_object(folder / _TEMPORARY / _STATE, document)


def publish(folder: Path, step: int) -> None:
    """Make the written checkpoint the newest one; of those before it, the last one stays.

    It is what a training goes on from if the newest one is damaged.
    """
    older = _finished(folder)
    try:
        flush_folder(folder / _TEMPORARY)
        target = folder / _name(step)
        if target.exists():
            return
        (folder / _TEMPORARY).rename(target)
        flush_folder(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    for path in [*older[:-1], *folder.glob(f"{_DAMAGED}*")]:
        shutil.rmtree(path, ignore_errors=True)


def drop_unpublished(folder: Path) -> None:
    """Remove the unpublished checkpoint of a start that failed."""
    shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """Return the newest finished checkpoint; None where there is none."""
    finished = _finished(folder)
    return finished[-1] if finished else None


def newest_sound(folder: Path) -> Path | None:
    """Return the newest checkpoint that is what was written; None where there is none at all.

    A damaged one that is newer is renamed, so that the training can write that step again, and
    named in a warning.

    Raises:
        RunError: all of them are damaged; nothing is changed.
    """
    damaged: list[tuple[Path, RunError]] = []
    for path in reversed(_finished(folder)):
        try:
            _check(path)
        except RunError as error:
            damaged.append((path, error))
            continue
        for other, why in damaged:
            log.warning("%s; going on from the one before it, %s", why, path.name)
            with suppress(OSError):  # read-only: writing the next checkpoint fails
                other.rename(other.with_name(f"{_DAMAGED}{other.name}"))
        return path
    if damaged:
        raise RunError(
            f"no checkpoint in {folder} can be used ({damaged[0][1]}): start again in a new --run"
        )
    return None


def read_loop_state(path: Path) -> dict[str, Any]:
    """Return the loop state of a checkpoint.

    Raises:
        RunError: it is damaged.
    """
    try:
        state: dict[str, Any] = _read_state(path)["loop"]
        if not isinstance(state, dict):
            raise ValueError("its loop state is no JSON object")
    except DAMAGE as error:
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
    wrote = len(list(path.glob("random-*")))
    if wrote != num_processes:
        raise RunError(
            f"the checkpoint {path} was written by {number_of(wrote, 'process', 'processes')}, "
            f"each with a random state of its own, and {num_processes} are to go on: start "
            f"{wrote}, see launch/README.md"
        )
    try:
        state = _read_state(path)
        tensors = {name: _read_tensors(path, name, state) for name in (_MODEL, _OPTIMIZER)}
        random = _read_random(path, process_index)
    except (SafetensorError, *DAMAGE) as error:
        raise _damaged(path, error) from error
    try:
        load_state(model, tensors[_MODEL], state.get("versions"))
        saved = _join(tensors[_OPTIMIZER], state["optimizer"])
        optimizer.load_state_dict(_implemented_as(optimizer, saved))
        _lay_out_as_parameters(optimizer)
        torch.set_rng_state(random["cpu"])
        if torch.cuda.is_available() and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])
    except Exception as error:  # whatever torch and a model's own code raise on what does not fit
        raise _unusable(
            path, error, "does not fit the model: start again in a new --run"
        ) from error


def _check(path: Path) -> None:
    """Compare all files of a checkpoint with their checksums.

    Raises:
        RunError: one of them is missing or is not what was written.
    """
    try:
        state = _read_state(path)
        if _SUMS not in state:
            log.info("%s is of an earlier kdscale, without checksums: it cannot be checked", path)
        for name in (_MODEL, _OPTIMIZER):
            _read_tensors(path, name, state)
        for file in path.glob("random-*"):
            _read_random(path, int(file.stem.removeprefix("random-")))
    except (SafetensorError, *DAMAGE) as error:
        raise _damaged(path, error) from error


def _read_state(path: Path) -> dict[str, Any]:
    return _read_object(path / _STATE)


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint, of this run."""
    table = read_object(path, root=path.parent)
    check_run(path, table.pop(RUN_ID, None), folder=path.parents[2])
    return table


def _read_tensors(path: Path, name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    data = read_inside(path, name)
    if _SUMS in state and _crc32(data) != state[_SUMS][name]:
        raise ValueError(f"{name} does not match its checksum")
    return load(data)


def _read_random(path: Path, process_index: int) -> dict[str, Tensor]:
    """Return the random states of a process, uint8 by device."""
    before = path / f"random-{process_index}.safetensors"  # of an earlier kdscale
    if before.exists():
        return load(read_inside(path, before.name))
    states = _read_object(path / f"random-{process_index}.json")
    return {
        device: torch.frombuffer(bytearray.fromhex(one), dtype=torch.uint8)
        for device, one in states.items()
    }


def _implemented_as(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state with the implementation of `optimizer`, which its device decides.

    What no file contains, such as a dtype or a function, is that of `optimizer`, too.
    """
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        of_device = ("fused", "foreach")
        group |= {name: own[name] for name in own if name not in group or name in of_device}
    return saved


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | dict)


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Files hold contiguous tensors; beside a parameter of another layout they would be slower."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _damaged(path: Path, error: Exception) -> RunError:
    return _unusable(path, error, "is damaged")


def _unusable(path: Path, error: Exception, verdict: str) -> RunError:
    reason = " ".join(str(error).split())[:300]
    return RunError(
        f"the checkpoint {path} cannot be used ({type(error).__name__}: {reason}): it {verdict}"
    )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _finished(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("step-*") if path.is_dir() and not path.is_symlink())
    return sorted(found)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, and return the CRC-32 of the file.

    Those that share memory, as tied weights do, are each written in full.
    """
    unshared: dict[str, Tensor] = {}
    stored = set[int]()
    for name, tensor in tensors.items():
        unshared[name] = tensor.detach().cpu().contiguous()
        if (place := unshared[name].untyped_storage().data_ptr()) in stored:
            unshared[name] = unshared[name].clone()
        stored.add(place)
    data = save(unshared)
    with ThreadPoolExecutor(1) as beside:  # while the disk is busy
        found = beside.submit(_crc32, data)
        write_durably(path, data)
    return found.result()


def _crc32(data: bytes) -> str:
    """Return 8 hexadecimal digits: 2 GB/s, where SHA-256 would cost half as much as the disk."""
    return f"{zlib.crc32(data):08x}"


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state as tensors by dotted name, and the JSON that is left.

    Tensors of a parameter group, as timm's Lamb counts its steps in, are named `group.N.NAME`.
    What is neither, a dtype or a function, is an argument of the optimizer, which has it again.
    """
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            table: dict[str, Any] = tensors if isinstance(value, Tensor) else rest
            table[f"{parameter}.{name}"] = value
    groups = []
    for number, group in enumerate(state["param_groups"]):
        groups.append({name: value for name, value in group.items() if _is_json(value)})
        inside = {name: value for name, value in group.items() if isinstance(value, Tensor)}
        tensors |= {f"{_GROUP}.{number}.{name}": value for name, value in inside.items()}
    return tensors, {"param_groups": groups, "values": rest}


def _join(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**rest["values"], **tensors}.items():
        parameter, name = key.split(".", 1)
        if parameter == _GROUP:
            number, name = name.split(".", 1)
            rest["param_groups"][int(number)][name] = value
        else:
            state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}
