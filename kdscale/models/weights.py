"""Weights files: written whole or not at all, read only if they fit."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kdscale.atomic_write import write_durably
from kdscale.errors import WeightsError
from kdscale.formatting import first_few
from kdscale.models.checkpoints import FORMAT, read_metadata, read_tensors
from kdscale.models.checksums import state_sha256, with_checksums
from kdscale.models.library_names import in_library_names
from kdscale.models.wrappers import COUNTER, check_kinds, of_model
from kdscale.module_versions import KEY, load_state, versions_of

log = logging.getLogger(__name__)

__all__ = ["load_weights", "read_metadata", "save_weights", "state_sha256", "tensors_sha256"]


def save_weights(path: str | Path, model: nn.Module, *, metadata: Mapping[str, object]) -> None:
    """Write a model's tensors as safetensors: durable, and whole or not at all.

    Tensors that share memory are each written in full, so any reader can load the file.

    Args:
        path: the file to write or replace; its folder is created.
        model: on any device, in any memory format.
        metadata: stored in the header, each value as JSON, beside the versions of the model's
            modules and checksums of header and tensors; `read_metadata` gives it back.

    Raises:
        StorageError: the disk is full, read-only or not permitted.
        WeightsError: the model's state holds something that is not a tensor.
    """
    path = Path(path)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_of(model).items()
    }
    stated = {**metadata, KEY: versions_of(model)}
    header = {key: json.dumps(value, ensure_ascii=False) for key, value in stated.items()}
    header |= FORMAT
    signed = with_checksums(header, tensors)
    write_durably(path, safetensors.torch.save(tensors, metadata=signed))


def load_weights(
    path: str | Path,
    model: nn.Module,
    *,
    rename: Mapping[str, str] | None = None,
    what: str = "teacher",
    headless: bool = False,
) -> dict[str, Any]:
    """Load a file into a model, all of it or nothing.

    Args:
        path: safetensors, or a torch checkpoint, of which the usual nests (`state_dict`, `model`,
            `model_state_dict`) and prefixes (see `of_model`) are undone.
        model: filled in place, on its own device and in its own dtype; unchanged on any error.
        rename: prefixes in the file -> prefixes in the model; the longest that fits is taken.
        what: the model's part, for messages: "teacher" or "student".
        headless: whether weights of one further linear layer may be in the file: those of the
            classifier that the model is created without.

    Returns:
        The file's metadata, decoded; values that are not JSON stay strings.

    Raises:
        WeightsError: the file is missing, damaged or would run code; names, shapes or kinds of
            number differ from the model's; or a value is not finite.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    own = state_of(model)
    tensors = of_model(in_library_names(model, tensors), own, rename or {}, path)
    tensors |= {k: v for k, v in own.items() if k.endswith(COUNTER) and k not in tensors}
    if headless:
        tensors = _without_classifier(tensors, own, path)
    _check_names(tensors, own, path, what)
    _check_shapes(tensors, own, path, what)
    check_kinds(tensors, own, path, what)
    check_finite(tensors, path, what)
    load_state(model, tensors, _versions(metadata.pop(KEY, None)))
    return metadata


def _versions(stated: object) -> dict[str, int] | None:
    """Return the versions of modules that a file states; None where it states none."""
    if not isinstance(stated, dict):
        return None
    return {name: value for name, value in stated.items() if isinstance(value, int)}


def tensors_sha256(model: nn.Module) -> str:
    """Return the SHA-256 (hex) of all tensors of a model: names, dtypes, shapes and bytes.

    The same for any file format, device and memory format; another for any changed bit.
    """
    return state_sha256(state_of(model))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by name.

    Raises:
        WeightsError: its state holds something else, too.
    """
    state = model.state_dict()
    foreign = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise WeightsError(
            f"the model's state holds {first_few(foreign)}, wanted tensors alone: "
            "weights files cannot hold a module's extra state"
        )
    return dict(state)


def _without_classifier(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Leave out weight and bias of the one linear layer that a model lacks."""
    further = {name for name in tensors if name not in own}
    layers = {name.rpartition(".")[0] for name in further}
    if len(layers) == 1:
        layer = layers.pop()
        if further <= {f"{layer}.weight", f"{layer}.bias"}:
            log.info("%s: the classifier %r is left out (num_classes = 0)", path, layer)
            return {name: one for name, one in tensors.items() if name in own}
    return dict(tensors)


def _check_names(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, what: str
) -> None:
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{path} is not of this {what}: missing {first_few(missing)}; unexpected "
            f"{first_few(unexpected)}: name the model that it was made from, or map the prefixes "
            'with rename (such as {"f." = "features."})'
        )


def _check_shapes(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, what: str
) -> None:
    pairs = {k: (tuple(tensors[k].shape), tuple(own[k].shape)) for k in own}
    differing = {k: (got, wanted) for k, (got, wanted) in pairs.items() if got != wanted}
    if not differing:
        return
    if head := head_classes(list(differing.values())):
        raise WeightsError(
            f"{what} weights have a head for {head[0]} classes, the data set has {head[1]} "
            f"({path}, {first_few(differing)}): take weights trained on these classes, or "
            "train from them with a new head: name them as pretrained in its train section"
        )
    listed = [
        f"{k} got {list(got)}, wanted {list(wanted)}" for k, (got, wanted) in differing.items()
    ]
    raise WeightsError(
        f"{path} has other shapes than this {what}: {first_few(listed)}: "
        "name the model, and its options, that it was made from"
    )


def head_classes(shapes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[int, int] | None:
    """Return (got, wanted) classes if the tensors differ in their outputs alone, all by the same.

    A hidden layer of another width would also change the inputs of the layer that follows it.
    """
    if any(not got or not wanted or got[1:] != wanted[1:] for got, wanted in shapes):
        return None
    counts = {(got[0], wanted[0]) for got, wanted in shapes}
    return counts.pop() if len(counts) == 1 else None


def check_finite(tensors: Mapping[str, Tensor], path: Path | str, what: str) -> None:
    """Raise WeightsError where a value is NaN or infinite."""
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(
            f"{what} weights {path} hold NaN or infinity in {first_few(bad)}, wanted finite "
            "numbers: the training that made them diverged; take an earlier checkpoint"
        )
