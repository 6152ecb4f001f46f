"""The tensors of a file under the names of a model: wrappers' prefixes undone, kinds compared."""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdscale.errors import WeightsError
from kdscale.formatting import first_few, number_of

log = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"  # batch-norm's, absent from files older than torch 0.4.1
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""Of DistributedDataParallel and AveragedModel, of torch.compile, of Lightning's modules."""


@dataclass(frozen=True, slots=True)
class _Unwrapped:
    """A file's tensors without some of the prefixes that wrappers put before their names."""

    tensors: Mapping[str, Tensor]
    prefix: str
    """All that was taken off; "" where nothing was."""
    outside: Mapping[str, Tensor]
    """Tensors whose names do not begin with the prefix."""


def of_model(
    tensors: Mapping[str, Tensor],
    own: Collection[str],
    rename: Mapping[str, str],
    source: Path | str,
) -> dict[str, Tensor]:
    """Return a file's tensors under the names of a model.

    Prefixes of wrappers are taken off until the names are the model's: not those that its own names
    begin with. What lies beside the wrapped model in the file (AveragedModel's `n_averaged`, what
    else a Lightning module holds) is left out where all of the model is found, and named.

    Args:
        tensors: of the file.
        own: the names of the model's tensors.
        rename: prefixes in the file, unwrapped -> prefixes in the model; the longest that fits.
        source: where they are from, for messages.

    Raises:
        WeightsError: two tensors get the same name.
    """
    needed = {name for name in own if not name.endswith(COUNTER)}
    nearest: dict[str, Tensor] = {}
    for one in _candidates(tensors):
        names = renamed(one.tensors, rename, source)
        if needed <= names.keys():
            if left_out := sorted(one.outside.keys() - {"n_averaged"}):
                log.warning(
                    "%s: %s beside %r left out: %s", source, number_of(len(left_out), "tensor"),
                    one.prefix, first_few(left_out),
                )  # fmt: skip
            return names
        nearer = len(needed & names.keys()) > len(needed & nearest.keys())
        if not one.prefix or (nearer and not one.outside):
            nearest = names
    return nearest


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[_Unwrapped]:
    """The tensors as they are, then with one prefix after another taken off."""
    inner, prefix = dict(tensors), ""
    outside: dict[str, Tensor] = {}
    while True:
        yield _Unwrapped(inner, prefix, outside)
        # The one that most names begin with: there may be other tensors beside the model.
        counts = {p: sum(name.startswith(p) for name in inner) for p in _PREFIXES}
        most = max(_PREFIXES, key=lambda p: counts[p])
        if not counts[most]:
            return
        outside = outside | {n: t for n, t in inner.items() if not n.startswith(most)}
        inner = {n.removeprefix(most): t for n, t in inner.items() if n.startswith(most)}
        prefix += most


def renamed(
    tensors: Mapping[str, Tensor], rename: Mapping[str, str], source: Path | str
) -> dict[str, Tensor]:
    """Return tensors with the prefixes of their names replaced; the longest that fits is taken.

    Raises:
        WeightsError: two get the same name.
    """
    prefixes = sorted(rename, key=len, reverse=True)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = next((p for p in prefixes if name.startswith(p)), "")
        new = rename[prefix] + name.removeprefix(prefix) if prefix in rename else name
        if new in found:
            raise WeightsError(
                f"two tensors of {source} are called {new!r} after renaming {dict(rename)}: "
                "make the prefixes unambiguous"
            )
        found[new] = tensor
    return found


def check_kinds(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: Path | str, what: str
) -> None:
    """Raise WeightsError where a file holds integers or booleans for a model's real numbers.

    A conversion between floating-point types is meant; one of quantised values without their scale
    is not.
    """
    shared = [name for name in own if name in tensors]
    wrong = [name for name in shared if _kind(tensors[name]) != _kind(own[name])]
    if wrong:
        first = wrong[0]
        raise WeightsError(
            f"{what} weights {source} hold {_kind(tensors[first])} values "
            f"({str(tensors[first].dtype).removeprefix('torch.')}) in {first_few(wrong)}, wanted "
            f"{_kind(own[first])} ({str(own[first].dtype).removeprefix('torch.')}): quantised "
            "weights cannot be used; take those from before they were converted"
        )


def _kind(tensor: Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return "sparse, quantised or absent"
    if tensor.is_floating_point():
        return "real"
    if tensor.is_complex():
        return "complex"
    return "boolean" if tensor.dtype == torch.bool else "integer"
