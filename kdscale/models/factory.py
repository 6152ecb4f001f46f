"""Calling what makes a model: options checked by name, and factories of the user's own."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdscale.errors import ModelError


def build(
    name: str, factory: Callable[..., Any], fixed: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a factory with what follows from the data set and what the recipe adds.

    Args:
        name: the model, for messages.
        factory: what makes it.
        fixed: arguments that no option may replace.
        options: arguments of the recipe.

    Raises:
        ModelError: an option is unknown or not free, or the factory refuses its arguments.
    """
    if taken := sorted(fixed.keys() & options.keys()):
        raise ModelError(
            f"model {name}: {taken[0]} is no option, it follows from the data set and from the "
            f"kind of model: remove it (got {options[taken[0]]!r})"
        )
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = sorted(options.keys() - parameters.keys())
    if unknown and not open_ended:
        known = sorted(parameters.keys() - fixed.keys() - {"num_classes", "in_channels"})
        raise ModelError(
            f"model {name} has no option {unknown[0]!r}{did_you_mean(unknown[0], known)}; "
            f"its options: {', '.join(known) or 'none'}"
        )
    try:
        return factory(**fixed, **options)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model {name} refused its arguments ({_listed({**fixed, **options})}): "
            f"{error}: correct its options"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` with up to three near names, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def factory_model(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    """Call `module.path:factory`; the current folder is importable.

    The factory gets `num_classes` and `in_channels` where its signature has them, and the options.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file here must not replace an installed library
    factory = _factory(name, module_name, attribute)
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    offered = {"num_classes": num_classes, "in_channels": in_channels}
    fixed = {key: value for key, value in offered.items() if open_ended or key in parameters}
    model = build(name, factory, fixed, options)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {name} returned {type(model).__name__}, wanted a torch nn.Module")
    return model


def _factory(name: str, module_name: str, attribute: str) -> Callable[..., Any]:
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        raise ModelError(
            f"model {name}: {module_name!r} cannot be imported ({error}): wanted "
            f"module.path:factory, importable here or from {Path.cwd()}"
        ) from error
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelError(
            f"model {name}: {module_name} has no function {attribute!r}"
            f"{did_you_mean(attribute, vars(module))}"
        )
    return factory


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
