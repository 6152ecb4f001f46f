"""Count what a batch costs a GPU's launch queue, on a machine without one.

Tensors of the device "cuda" are fake: they have a shape and a type, and no values. Whatever needs
a value on the host cannot go on, and whatever crosses between host and device is seen. Tensors of
the host are real: plans, windows and range checks do there what they always do.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda", 0)

_FAKE = FakeTensorMode()  # one for all: tensors of two modes do not mix
_LAUNCH_NOTHING = {
    "aten::_local_scalar_dense", "aten::_reshape_alias", "aten::detach", "aten::empty",
    "aten::empty_like", "aten::empty_strided", "aten::lift", "aten::lift_fresh", "aten::new_empty",
    "aten::new_empty_strided", "aten::resize_", "aten::set_", "prim::device",
}  # fmt: skip
_WAIT = {
    "aten::_local_scalar_dense", "aten::_unique", "aten::_unique2", "aten::equal", "aten::item",
    "aten::masked_select", "aten::nonzero", "aten::unique_consecutive", "aten::unique_dim",
}  # fmt: skip
"""Operators whose result the host waits for, besides those that torch tags so."""
_VALUE_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEX = ("aten::index", "aten::index_put", "aten::index_put_")
_MASKS = (torch.bool, torch.uint8)  # an index made of these is a selection of unknown size


@dataclass(frozen=True, slots=True)
class Case:
    """One batch of something: `prepare`, called once, returns the function that makes a batch.

    The function runs twice and the second batch counts: tables that are made once, or once an
    epoch, are there by then.
    """

    name: str
    prepare: Callable[[], Callable[[], object]]
    most_async_copies: int = 0
    """Asynchronous copies a batch may take: 1 where pixels or targets are not resident."""


@dataclass(slots=True)
class Counts:
    """What was counted in one batch."""

    host_syncs: int = 0
    """Times that the host waits for a value, a shape or a copy to it."""
    blocking_copies: int = 0
    """Copies to the device from memory that is not pinned, or that are not `non_blocking`."""
    async_copies: int = 0
    kernels: int = 0
    """Operators that launch at least one kernel; views and allocations launch none."""
    stopped_at: str | None = None
    """The operator that cannot go on without a value; the counts end there."""
    operators: Counter[str] = field(default_factory=Counter)
    """How often each operator launched."""


def count(case: Case) -> Counts:
    """Count the second batch of a case, or what comes before a first one that cannot go on."""
    counter = _Counter()
    clear_tensor_caches()
    try:
        with _FAKE, counter:
            batch = case.prepare()
            batch()
            counter.counts = Counts()
            batch()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        counter.counts.stopped_at = str(error.func)
    finally:
        clear_tensor_caches()
    return counter.counts


class SameThread(Executor):
    """Runs what is given to another thread at once: operators are counted in one thread alone."""

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> "Future[Any]":
        """Run a function and return its result as a future."""
        done: Future[Any] = Future()
        done.set_result(function(*arguments, **keywords))
        return done


def clear_tensor_caches() -> None:
    """Empty kdscale's caches of tensors: fake and real ones must never meet."""
    modules = [module for name, module in sys.modules.items() if name.startswith("kdscale")]
    for value in [value for module in modules for value in vars(module).values()]:
        if callable(value) and hasattr(value, "__wrapped__"):
            cached = inspect.unwrap(value, stop=lambda one: hasattr(one, "cache_clear"))
            if "Tensor" in str(getattr(cached, "__annotations__", {}).get("return")):
                getattr(cached, "cache_clear", lambda: None)()


class _Counter(TorchDispatchMode):
    """Counts every operator on its way to the fake tensors below."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._pinned: list[Any] = []
        """Storages; fake tensors do not remember it."""

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        keywords = dict(keywords or {})
        name = function._schema.name
        given = _tensors((arguments, keywords))
        if name in ("aten::is_pinned", "aten::_is_pinned"):
            return self._is_pinned(given[0])
        if name in ("aten::pin_memory", "aten::_pin_memory"):
            return self._pin(_run(torch.ops.aten.clone.default, given[:1], {}))
        pinned = keywords.pop("pin_memory", False)
        if any(_on_cuda(tensor) for tensor in given):
            self._count_waits(name, function.tags, arguments)
        made = _run(function, arguments, keywords)
        non_blocking = bool(keywords.get("non_blocking")) or (
            name == "aten::copy_" and True in arguments[2:]
        )
        self._count_work(function, name, given, _tensors(made), non_blocking)
        return self._pin(made) if pinned else made

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor.untyped_storage())
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        return any(storage._cdata == pinned._cdata for pinned in self._pinned)

    def _count_waits(self, name: str, tags: Any, arguments: tuple[Any, ...]) -> None:
        if name in _INDEX:
            places = _tensors(arguments[1])
            self.counts.host_syncs += any(place.dtype in _MASKS for place in places)
            self.counts.blocking_copies += sum(not _on_cuda(place) for place in places)
        else:
            self.counts.host_syncs += name in _WAIT or not _VALUE_TAGS.isdisjoint(tags)

    def _count_work(
        self, function: Any, name: str, given: list[Tensor], made: list[Tensor], non_blocking: bool
    ) -> None:
        if name in ("aten::_to_copy", "aten::copy_"):
            source, target = (given[0], made[0]) if name == "aten::_to_copy" else given[1::-1]
            if _on_cuda(source) != _on_cuda(target):
                self._count_copy(source, target, non_blocking)
                return
        launches = name not in _LAUNCH_NOTHING and not function.is_view
        if launches and any(_on_cuda(tensor) for tensor in made or given):  # fused ones return none
            self.counts.kernels += 1
            self.counts.operators[str(function)] += 1

    def _count_copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        host = target if _on_cuda(source) else source
        if non_blocking and (host is target or self._is_pinned(host)):
            self.counts.async_copies += 1
        elif host is target:
            self.counts.host_syncs += 1
        else:
            self.counts.blocking_copies += 1


def _run(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
    """Run an operator: for real on the host alone, else on fake tensors."""
    given, place = _tensors((arguments, keywords)), keywords.get("device")
    is_fake = any(isinstance(tensor, FakeTensor) for tensor in given)
    if not is_fake and (place is None or torch.device(place).type == "cpu"):
        with unset_fake_temporarily():
            return function(*arguments, **keywords)
    arguments, keywords = tree_map_only(Tensor, _as_fake, (arguments, keywords))
    return function(*arguments, **keywords)


def _as_fake(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, FakeTensor) else _FAKE.from_tensor(tensor)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"
