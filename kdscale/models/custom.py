"""Calling what makes a model: options checked by name, and factories of the user's own."""

import difflib
import functools
import importlib
import inspect
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any

import torch
from torch import nn

from kdscale.errors import ModelError
from kdscale.formatting import reason_of, shortened

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # module.path:factory
_STANDARD = sys.stdlib_module_names | set(sys.builtin_module_names)
_ANY_MODULE = (object, Any, nn.Module)


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
            f"kind of model: remove it (got {shortened(repr(options[taken[0]]))})"
        )
    parameters = _signature(name, factory).parameters
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
            f"{reason_of(error)}: correct its options"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` with up to three near names, or nothing."""
    near = difflib.get_close_matches(name[:200], list(known), n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def described(error: BaseException) -> str:
    """Return an exception's type, the first line of its message and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {reason_of(error)}{where}"


def factory_model(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    """Call `module.path:factory`; the current folder is importable.

    The factory gets `num_classes` and `in_channels` where its signature has them, and the options.

    Raises:
        ModelError: the name is not that of a function, or of a class of models, outside Python's
            standard library; or it fails, or returns something else than a model.
    """
    factory = _factory(name)
    parameters = _signature(name, factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    offered = {"num_classes": num_classes, "in_channels": in_channels}
    fixed = {key: value for key, value in offered.items() if open_ended or key in parameters}
    model = build(name, factory, fixed, options)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {name} returned {type(model).__name__}, wanted a torch nn.Module")
    return model


def _factory(name: str) -> Callable[..., Any]:
    """Return what a name stands for, once it can be a factory of models."""
    if not _FORM.fullmatch(name):
        raise ModelError(
            f"model {shortened(name)!r} is not of the form module.path:factory: wanted Python "
            "names with dots between them, a colon, and the name of a function or class"
        )
    module_name, _, attribute = name.partition(":")
    if any(part.startswith("_") for part in (*module_name.split("."), attribute)):
        raise ModelError(
            f"model {name} has a private name, one with _ in front: wanted a public one"
        )
    if module_name.partition(".")[0] in _STANDARD:
        raise ModelError(
            f"model {name}: {module_name} is a module of Python itself, none that makes models: "
            "name a module of your own, and if a file of yours has this name, rename the file"
        )
    factory: Any = getattr(_import(name, module_name), attribute, None)
    if not callable(factory):
        raise ModelError(
            f"model {name}: {module_name} has no function {attribute!r}"
            f"{did_you_mean(attribute, vars(sys.modules[module_name]))}"
        )
    if (problem := _not_a_factory(factory)) is not None:
        raise ModelError(
            f"model {name} is {problem}, so nothing was called: wanted a function that returns a "
            "torch nn.Module, or a subclass of nn.Module"
        )
    found: Callable[..., Any] = factory
    return found


def _import(name: str, module_name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file here must not replace an installed library
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # a module runs any code while it is imported
        raise ModelError(
            f"model {name}: {module_name!r} cannot be imported ({described(error)}): wanted "
            f"module.path:factory, importable here or from {Path.cwd()}"
        ) from error


def _not_a_factory(found: Callable[..., Any]) -> str | None:
    """Return what something is that cannot be a factory of models, in words; else None."""
    made: Any = found
    while isinstance(made, functools.partial):
        made = made.func
    made = inspect.unwrap(made)
    if inspect.isclass(made):
        return None if issubclass(made, nn.Module) else f"the class {made.__name__}, no nn.Module"
    if inspect.isbuiltin(made):
        return "a built-in function of Python or of a compiled library"
    if not inspect.isfunction(made) and not inspect.ismethod(made):
        return f"an object of type {type(made).__name__}"
    if (made.__module__ or "").partition(".")[0] in _STANDARD:
        return f"a function of Python's own module {made.__module__}"
    returned = _return_type(made)
    return None if _may_be_a_module(returned) else f"a function that returns {_name_of(returned)}"


def _return_type(function: Callable[..., Any]) -> Any:
    """Return a function's annotation of what it returns; Any where there is none to be read."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except Exception:  # an annotation may be any text
        return Any


def _may_be_a_module(annotation: Any) -> bool:
    """Whether a value of the annotated type may be an nn.Module."""
    kind = typing.get_origin(annotation) or annotation
    if kind in (typing.Union, UnionType):
        return any(_may_be_a_module(one) for one in typing.get_args(annotation))
    if (
        annotation in _ANY_MODULE
        or not inspect.isclass(kind)
        or getattr(kind, "_is_protocol", False)
    ):
        return True
    return issubclass(kind, nn.Module)


def _name_of(annotation: Any) -> str:
    return (
        "nothing" if annotation is type(None) else str(getattr(annotation, "__name__", annotation))
    )


def _signature(name: str, factory: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(factory)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model {name} does not state its arguments ({error}): wanted a function or a class "
            "that Python can inspect"
        ) from error


def _listed(arguments: Mapping[str, Any]) -> str:
    return shortened(", ".join(f"{key}={shortened(repr(v))}" for key, v in arguments.items()), 500)
