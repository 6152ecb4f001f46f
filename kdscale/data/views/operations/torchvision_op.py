"""Transforms that are not ours, run sample by sample under a seed derived from the view's bits.

They replay exactly on the same library versions, which are therefore part of what is described;
native operations are many times faster and replay on all versions.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdscale.data.views.operations.operation import Native
from kdscale.errors import ConfigError
from kdscale.formatting import shortened

PREFIX = "v2."
"""Names of torchvision's transforms begin so: `v2.RandomPerspective`."""
LIBRARIES = ("torch", "torchvision", "numpy")

_WITHOUT_DRAWS = {"CenterCrop", "FiveCrop", "Grayscale", "Identity", "Pad", "Resize"}
_BATCH_TRANSFORMS = {"MixUp": "mixup", "CutMix": "cutmix"}


@dataclass(frozen=True, slots=True)
class TorchvisionOp(Native):
    """Any callable on one image, uint8 [C, H, W] on the CPU, that returns another of that kind.

    Draw 0 seeds the generators of torch, NumPy and Python, which are put back afterwards.

    Args:
        function: the callable; all its randomness must come from those generators.
        name: what it is, in manifests; give it another name whenever it changes.
        arguments: what it was made with, in manifests.
        fixes_size: whether its results are of one size, whatever the sizes of the images.
        draws: whether it draws anything at all.
    """

    function: Callable[[Tensor], object] = field(compare=False)
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    fixes_size: bool = False  # type: ignore[misc]  # of an instance here, of the class elsewhere
    draws: bool = True

    @property
    def num_draws(self) -> int:
        """The seed, if it draws."""
        return int(self.draws)

    @property
    def choices(self) -> tuple[int, ...] | None:
        """One outcome where nothing is drawn, else too many."""
        return None if self.draws else ()

    def describe(self) -> dict[str, Any]:
        """Name, arguments, and the versions it was made with."""
        return {"name": self.name, **self.arguments, "libraries": library_versions()}

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """The transformed images, on the device of `images`.

        Raises:
            ConfigError: the results are not uint8 images of one size.
        """
        samples = images.cpu()
        seeds = bits[0].tolist() if self.draws else [0] * len(samples)
        with _generators_put_back():
            made = [self._one(*both) for both in zip(samples, seeds, strict=True)]
        sizes = sorted({tuple(one.shape[-2:]) for one in made})
        if len(sizes) > 1:
            raise ConfigError(
                f"{self.name}: made images of different sizes ({sizes[0]}, {sizes[1]}): choose a "
                "transform that gives one size, or crop to one first"
            )
        return torch.stack(made).to(images.device)

    def _one(self, image: Tensor, seed: int) -> Tensor:
        # Not torch.manual_seed, which would also seed the GPUs' generators.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002, TID251  # what transforms draw from
        random.seed(seed)
        made = self.function(image)
        channels = image.shape[0]
        if not isinstance(made, Tensor) or made.dtype != torch.uint8 or made.ndim != 3:
            raise ConfigError(
                f"{self.name}: returned {_kind(made)}, wanted a uint8 tensor [C, H, W]: a view "
                "ends as pixels; scaling and normalising belong to the model (its input)"
            )
        if made.shape[0] != channels:
            raise ConfigError(
                f"{self.name}: returned {made.shape[0]} channels of {channels}: it must keep them"
            )
        return made


def from_torchvision(name: str, arguments: Mapping[str, Any]) -> TorchvisionOp:
    """A transform of `torchvision.transforms.v2` by its name, `v2.NAME`.

    Nested transforms are tables of the same kind; `interpolation` is its name. `libraries`, as
    manifests have it, must be the versions that are installed.

    Raises:
        ConfigError: unknown name or argument, a transform of whole batches, other versions.
    """
    given = {key: value for key, value in arguments.items() if key != "libraries"}
    libraries = arguments.get("libraries", library_versions())
    if libraries != library_versions():
        raise ConfigError(
            f"{name} was made with {json.dumps(libraries)}, installed are "
            f"{json.dumps(library_versions())}: it replays on the same versions only"
        )
    given = {key: _plain(value) for key, value in given.items()}
    try:
        json.dumps(given, allow_nan=False)
    except ValueError:
        raise ConfigError(f"{name}: an argument is not finite: {given}") from None
    transform = _create(name, given)

    def checked(image: Tensor) -> object:
        try:
            return transform(image)
        except Exception as error:  # whatever somebody else's code raises on such an image
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{name} cannot transform an image of {list(image.shape)} [C, H, W]: {reason}"
            ) from error

    draws = name.removeprefix(PREFIX) not in _WITHOUT_DRAWS
    return TorchvisionOp(checked, name, given, fixes_size=_fixes_size(name, given), draws=draws)


def is_own(description: object) -> bool:
    """Return whether an operation, as described, is a user's callable: only its name is known."""
    if not isinstance(description, Mapping) or "libraries" not in description:
        return False
    return not str(description.get("name")).startswith(PREFIX)


def library_versions() -> dict[str, str]:
    """The versions that a transform's pixels depend on."""
    return {library: version(library) for library in LIBRARIES}


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    from torchvision.transforms import v2  # half a second, and most pipelines are native

    short = name.removeprefix(PREFIX)
    if short in _BATCH_TRANSFORMS:
        raise ConfigError(f"{name} mixes whole batches: use {_BATCH_TRANSFORMS[short]!r}")
    known = [key for key, kind in vars(v2).items() if _is_transform(kind, v2.Transform)]
    known.remove("Lambda")  # of a function, which no recipe holds
    if short not in known:
        nearest = get_close_matches(short[:200], known, n=1)
        hint = (
            f"did you mean '{PREFIX}{nearest[0]}'?" if nearest else "see torchvision.transforms.v2"
        )
        raise ConfigError(
            f"views.operations: torchvision has no transform {shortened(name)!r}: {hint}"
        )
    try:
        values = {key: _value(key, value) for key, value in arguments.items()}
        return getattr(v2, short)(**values)
    except ConfigError:
        raise
    except Exception as error:  # whatever somebody else's code raises of such arguments
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{name}: {shortened(reason)}") from None


def _is_transform(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base) and kind is not base


def _plain(value: Any) -> Any:
    """An argument as it is described: 1 and 1.0 are the same one."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value(key: str, value: Any) -> Any:
    """An argument as torchvision wants it: enumerations and types by name, nested transforms."""
    if isinstance(value, str):
        if value.startswith(PREFIX):
            return _create(value, {})
        if key == "dtype":
            kind = getattr(torch, value, None)
            return kind if isinstance(kind, torch.dtype) else value
        return _enumeration(key)(value)
    if isinstance(value, Mapping) and isinstance(name := value.get("name"), str):
        return _create(name, {k: v for k, v in value.items() if k != "name"})
    if isinstance(value, list):
        return [_value(key, item) for item in value]
    return value


def _enumeration(key: str) -> Callable[[str], Any]:
    """What makes an argument of its name; most texts stay what they are."""
    from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

    kinds: dict[str, Callable[[str], Any]]
    kinds = {"interpolation": InterpolationMode, "policy": AutoAugmentPolicy}
    return kinds.get(key, str)


def _fixes_size(name: str, arguments: Mapping[str, Any]) -> bool:
    short = name.removeprefix(PREFIX)
    if short == "Resize":  # one number is the shorter side's
        return isinstance(arguments.get("size"), list) and len(arguments["size"]) == 2
    return short in ("RandomResizedCrop", "CenterCrop", "RandomCrop")


def _kind(made: object) -> str:
    if isinstance(made, Tensor):
        return f"{made.dtype} {list(made.shape)}"
    return type(made).__name__


@contextmanager
def _generators_put_back() -> Iterator[None]:
    """What the body draws is not seen outside."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
