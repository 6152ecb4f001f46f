"""What modules inside a model give in a forward pass, and the linear layer that ends it.

Modules are named as `named_modules` names them ("layer4", "blocks.3.norm"). Hooks are there during
a forward pass and gone after it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdscale.errors import ConfigError, ModelError
from kdscale.targets import Head

OUTPUT = "output"
"""Name of a whole model's output among those of its modules; a module of this name comes first."""
_SUGGESTED = 3
_SHAPES = (2, 3, 4)  # vectors [B, D], tokens [B, T, D], maps [B, C, H, W]
_NO_CHANGE = (nn.Identity, nn.Dropout, nn.Flatten)  # in evaluation mode, but for the shape


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A module whose output is wanted."""

    module: str
    """Its dotted name; `OUTPUT` for the whole model."""
    pool: int | None = None
    """Maps only: average them to so many pixels a side; 1 makes a vector."""


@dataclass(slots=True)
class FeatureExtractor:
    """What was seen in one forward pass, all of it copied: later layers may work in place."""

    features: dict[str, Tensor] = field(default_factory=dict)
    """By module, float32 [B, ...]."""
    head_input_BD: Tensor | None = None
    """What entered the head, float32 [B, D]."""


@contextmanager
def extract_features(
    model: nn.Module, taps: Iterable[FeatureSpec] = (), head: str | None = None
) -> Iterator[FeatureExtractor]:
    """Watch one forward pass of a model.

    Args:
        model: in evaluation mode; called once inside the context.
        taps: the modules whose outputs are wanted.
        head: the module whose input is wanted.

    Raises:
        ConfigError: a module is unknown, its output is not one tensor of 2 to 4 dimensions, it is
            called twice or not at all, or a map is too small to be pooled.
    """
    seen, modules, hooks = FeatureExtractor(), named(model), []
    try:
        for tap in taps:
            module = find_module(modules, tap.module)
            hooks.append(module.register_forward_hook(_note_output(seen, tap)))
        if head is not None:
            hooks.append(
                modules[head].register_forward_pre_hook(_note_input(seen), with_kwargs=True)
            )
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for tap in taps:
        if tap.module not in seen.features:
            raise ConfigError(
                f"module {tap.module!r} takes no part in the teacher's forward pass in evaluation "
                "mode: name another one in cache.features"
            )


def named(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its dotted name; one that is used in two places has both."""
    return dict(model.named_modules(remove_duplicate=False))


def find_module(
    modules: Mapping[str, nn.Module], name: str, what: str = "the teacher"
) -> nn.Module:
    """A module by its dotted name.

    Raises:
        ConfigError: there is none; the nearest names are suggested.
    """
    if name and name in modules:
        return modules[name]
    if name == OUTPUT:
        return modules[""]
    near = get_close_matches(name, modules, n=_SUGGESTED, cutoff=0.5)
    top = [known for known in modules if known and "." not in known]
    hint = f"did you mean {_listed(near)}?" if near else f"its parts are {_listed(top)}"
    raise ConfigError(f"{what} has no module {name!r}: {hint}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _note_output(seen: FeatureExtractor, tap: FeatureSpec) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if tap.module in seen.features:
            raise ConfigError(
                f"module {tap.module!r} is called more than once in a forward pass of the teacher, "
                "so it has no one output: name another one in cache.features"
            )
        seen.features[tap.module] = _taken(output, tap, module)

    return note


def _taken(output: object, tap: FeatureSpec, module: nn.Module) -> Tensor:
    """Copy an output, and pool it where `tap` does."""
    if not isinstance(output, Tensor) or output.ndim not in _SHAPES:
        inside = [name for name, _ in module.named_children()]
        hint = f" ({_listed(inside[:_SUGGESTED])} are inside)" if inside else ""
        raise ConfigError(
            f"module {tap.module!r} of the teacher gives {_kind(output)}, wanted one tensor: "
            f"vectors [B, D], tokens [B, T, D] or maps [B, C, H, W]. Name another one{hint}"
        )
    if tap.pool is None:
        return output.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return _pooled(output.detach(), tap, tap.pool)


def _pooled(output: Tensor, tap: FeatureSpec, pool: int) -> Tensor:
    if output.ndim != 4 or min(output.shape[2:]) < pool:
        raise ConfigError(
            f"cache.features names module {tap.module!r} pooled to {pool} x {pool}, but it "
            f"gives {_kind(output)}: pooling wants maps [B, C, H, W] of at least that size"
        )
    # Averages in float32 whatever the forward's precision: autocast leaves float32 inputs alone.
    pooled = F.adaptive_avg_pool2d(output.to(torch.float32), pool).contiguous()
    return pooled.flatten(1) if pool == 1 else pooled


def _note_input(seen: FeatureExtractor) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        (inputs,) = (*args, *kwargs.values())
        if seen.head_input_BD is not None:
            raise ModelError("the teacher's last linear layer is called more than once")
        seen.head_input_BD = inputs.detach().to(torch.float32, copy=True)

    return note


# --------------------------------------------------------------------------- the head


def find_head(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[str, Head]:
    """The linear layer whose output is what a model returns, and its name.

    It is found by watching a forward pass, whatever it is called, and its output is compared with
    the model's: scaling, a soft-max or an average after it do not go unnoticed.

    Args:
        model: in evaluation mode.
        forward: calls it on some images, in the precision of the build, and returns what it
            returns, [B, C].

    Raises:
        ConfigError: the model ends in something else; its last layer is named.
    """
    calls: list[tuple[str, nn.Module, Any, Any]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: calls.append((name, module, args, output))

    layers = {name: one for name, one in model.named_modules() if _is_layer(one)}
    hooks = [one.register_forward_hook(note(name)) for name, one in layers.items()]
    try:
        returned = forward()
    finally:
        for hook in hooks:
            hook.remove()
    return _checked_head([call for call in calls if not isinstance(call[1], _NO_CHANGE)], returned)


def _is_layer(module: nn.Module) -> bool:
    """A parametrized linear layer has children too."""
    return isinstance(module, nn.Linear) or not any(module.children())


def _checked_head(
    calls: Sequence[tuple[str, nn.Module, Any, Any]], returned: Tensor
) -> tuple[str, Head]:
    linear = [call for call in calls if isinstance(call[1], nn.Linear)]
    if not linear or (calls[-1] is not linear[-1] and not _equal(linear[-1][3], returned)):
        name, module = calls[-1][:2] if calls else ("", nn.Identity())
        raise _no_head(
            f"its last layer is {name or 'the model itself'!r}, {_article(type(module).__name__)}, "
            "which is not linear"
        )
    name, module, args, output = linear[-1]
    assert isinstance(module, nn.Linear)
    if not _equal(output, returned) or not args or args[0].ndim != 2:
        raise _no_head(
            f"its last linear layer is {name!r}, but what the model returns is not what that "
            "layer gives"
        )
    if sum(call[0] == name for call in calls) > 1:
        raise _no_head(f"its last linear layer, {name!r}, is called more than once")
    bias: Tensor | None = module.bias
    bias = torch.zeros(len(module.weight)) if bias is None else bias
    head = Head(*(one.detach().float().cpu().clone() for one in (module.weight, bias)))
    if not head.gives(returned.detach().cpu(), args[0].detach().cpu()):
        # A subclass of Linear may do something else with its weights.
        raise _no_head(
            f"what its last linear layer {name!r} gives is not its input times its weight plus "
            "its bias"
        )
    return name, head


def _equal(output: object, returned: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.shape == returned.shape
        and torch.equal(output.float(), returned.float())
    )


def _no_head(reason: str) -> ConfigError:
    return ConfigError(
        "cache.encoding = 'embedding' stores what enters the teacher's linear head, but "
        f"{reason}: set cache.encoding = 'float16', 'int8' or 'int4'"
    )


def _article(word: str) -> str:
    return f"{'an' if word[:1] in 'AEIOU' else 'a'} {word}"


def _kind(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape [B, {', '.join(map(str, output.shape[1:]))}]"
    return _article(type(output).__name__)
