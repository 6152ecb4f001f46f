"""A pipeline of operations: images and (view, index) in, the view's pixels out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from kdscale.data.rng import GENERATOR_VERSION, as_int64, bits_KB, derive_seed, integers, mix
from kdscale.data.views.batch_plan import BatchPlan, PlannedBatches, SampleViews, View
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.operations.mixing import Mixing
from kdscale.data.views.operations.operation import Operation
from kdscale.data.views.operations.operation_registry import NAMES, parse_operation
from kdscale.data.views.operations.torchvision_op import TorchvisionOp, is_own
from kdscale.errors import ConfigError, DataError

_ALL = derive_seed(0x616C6C)  # "all"
_DESCRIBED = {"generator", "seed", "operations", "pairing", "enumerated", "count"}
_MOST_VIEWS = 1 << 20  # of an enumerated pipeline
_LARGEST_WORD = (1 << 32) - 1
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class RenderedViews:
    """Views, the input of teacher and student."""

    pixels: Tensor
    """uint8 [B, C, H, W]."""
    weight: Tensor | None = None
    """float32 [B], share of a sample's own label; None where nothing is mixed."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What turns sample `index` into its view number `view`, under one seed.

    Raises:
        ConfigError: two mixing operations, mixing without a pairing, or an enumeration of what is
            not finite.
    """

    operations: tuple[Operation | Mixing, ...]
    seed: int = 0
    pairing: MixPairs | None = None
    """Who is mixed with whom."""
    enumerated: bool = False
    """Views count through all outcomes instead of drawing them."""

    def __post_init__(self) -> None:
        mixing = [_name(o) for o in self.operations if isinstance(o, Mixing)]
        if len(mixing) > 1:
            raise ConfigError(
                f"views.operations: {mixing[0]} and {mixing[1]}: only one operation may mix "
                "(mixup_or_cutmix switches between both)"
            )
        if mixing and self.pairing is None:
            raise ConfigError(
                f"{mixing[0]} needs to know its partners: give the pipeline a pairing"
            )
        if self.enumerated:
            self.count_all()

    @classmethod
    def parse(
        cls,
        operations: Sequence[str | Mapping[str, object]],
        seed: int = 0,
        *,
        pairing: MixPairs | None = None,
        enumerated: bool = False,
        field: str = "views.operations",
    ) -> "Pipeline":
        """A pipeline from names and tables: `["random_horizontal_flip", {"name": ..., ...}]`.

        Args:
            operations: in order.
            seed: of every draw.
            pairing: left out where nothing is mixed.
            enumerated: see the field.
            field: of the recipe, for messages.

        Raises:
            ConfigError: unknown operation or argument (nearest name given), wrong type or range.
        """
        parsed = tuple(parse_operation(entry, field) for entry in operations)
        mixes = any(isinstance(operation, Mixing) for operation in parsed)
        return cls(parsed, seed, pairing if mixes else None, enumerated)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Pipeline":
        """The pipeline that `describe` described, as a manifest's `views` has it.

        Raises:
            ConfigError: this version cannot replay it, or it has a transform of the user's own.
        """
        unknown = description.keys() - _DESCRIBED
        if unknown:
            raise ConfigError(
                f"views are described by {', '.join(sorted(unknown))}, which this kdscale does not "
                "know: use the one that made them"
            )
        if description["generator"] != GENERATOR_VERSION:
            raise ConfigError(
                f"views were made by generator {description['generator']}, this is generator "
                f"{GENERATOR_VERSION}: use the kdscale that made them"
            )
        own = [one["name"] for one in description["operations"] if is_own(one)]
        if own:
            raise ConfigError(
                f"the views have a transform of your own, {own[0]!r}, which a cache only names: "
                "open the cache with it (`CachedDataset(..., views=[...])`, or "
                "`CachedTargets.open(..., pipeline=...)`)"
            )
        pairing = description.get("pairing")
        return cls.parse(
            description["operations"],
            description["seed"],
            pairing=None if pairing is None else MixPairs(**pairing),
            enumerated=description.get("enumerated", False),
        )

    def describe(self) -> dict[str, Any]:
        """The canonical description: everything the pixels depend on besides the images."""
        description: dict[str, Any] = {
            "generator": GENERATOR_VERSION,
            "seed": self.seed,
            "operations": [_describe(operation) for operation in self.operations],
        }
        if self.pairing is not None:
            description["pairing"] = self.pairing.describe()
        if self.enumerated:
            description["enumerated"] = True
        return description

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with partners."""
        return self.pairing is not None

    @property
    def leading(self) -> int:
        """How many operations it takes until all views have one size; 0 where none fixes it."""
        for position, operation in enumerate(self.operations):
            if isinstance(operation, Mixing):
                break
            if operation.fixes_size:
                return position + 1
        return 0

    def count_all(self) -> int:
        """How many views there are in all.

        Raises:
            ConfigError: too many to count; the first operation that makes it so is named.
        """
        return prod(self._choices().values())

    def __call__(self, images: Tensor, view: View, index: Tensor) -> Tensor:
        """The pixels of views that are not mixed.

        Args:
            images: uint8 [B, C, H, W], as decoded.
            view: view number, one for the batch or int64 [B].
            index: int64 [B], position of each image in its data set.

        Returns:
            uint8 [B, C, H, W], on the device of `images`.

        Raises:
            ConfigError: the pipeline mixes.
            DataError: the images are not uint8 [B, C, H, W].
        """
        if self.mixes:
            raise ConfigError(
                "this pipeline mixes samples with partners, whose images it needs too: use "
                "`DeviceImages.render_views` (kdscale.data.loader) or `Pipeline.render`"
            )
        return self.apply(images, view, index)

    def plan(
        self,
        view: View,
        index: Tensor,
        sizes: int | Sequence[int] | None = None,
        device: torch.device = _CPU,
    ) -> PlannedBatches:
        """Plan batches of samples, with their partners where the pipeline mixes.

        Args:
            view: view number, one for all or int64 [N] in host memory.
            index: int64 [N] in host memory.
            sizes: number of samples of each batch, or of all but a shorter last one; None: one
                batch.
            device: device of the images.
        """
        partner = self.partner(view, index) if self.mixes else None
        if sizes is None:
            sizes = [len(index)]
        elif isinstance(sizes, int):
            sizes = [len(part) for part in index.split(sizes)]
        return PlannedBatches(view, index, sizes, device, self.draw, partner)

    def render(self, images: Tensor, plan: BatchPlan, done: int = 0) -> RenderedViews:
        """Render the views of a planned batch.

        Args:
            images: uint8 [N, C, H, W], those of `plan.images`.
            plan: samples, and partners if the pipeline mixes.
            done: number of leading operations that have been applied to the images.

        Raises:
            DataError: the images are not uint8 [N, C, H, W].
        """
        _check_pixels(images)
        samples, each, end = plan.samples, plan.images, len(self.operations)
        if not self.mixes:
            words = self._words(samples, plan.words, done, end)
            return RenderedViews(self._run(images, words, done, end))
        assert plan.place is not None, "the plan is of this pipeline"
        position, mixing = next(
            (position, operation)
            for position, operation in enumerate(self.operations)
            if isinstance(operation, Mixing)
        )
        words = self._words(each, plan.image_words, done, position)
        images = self._run(images, words, done, position)
        own, other = (images.index_select(0, part) for part in plan.place.tensor_split(2))
        words = self._words(samples, plan.words, position, end)
        mixed, weight = mixing.mix(own, other, words[: mixing.num_draws])
        pixels = self._run(mixed, words[mixing.num_draws :], position + 1, end)
        return RenderedViews(pixels, weight)

    def partner(self, view: View, index: Tensor) -> Tensor:
        """Return the sample that each one is mixed with: int64 [B]."""
        assert self.pairing is not None, "only a pipeline that mixes has partners"
        if isinstance(view, int):
            return self.pairing.partners(self.seed, view).to(index.device)[index]
        partner = index.clone()
        for number in view.unique().tolist():
            chosen = view == number
            partner[chosen] = self.partner(number, index[chosen])
        return partner

    def apply(
        self, images: Tensor, view: View, index: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Apply the operations from number `start` up to `stop`, none of which mixes.

        Raises:
            DataError: the images are not uint8 [B, C, H, W].
        """
        _check_pixels(images)
        stop = len(self.operations) if stop is None else stop
        words = self.draw(view, index.to(images.device), start, stop)
        return self._run(images, words, start, stop)

    def draw(self, view: View, index: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The random words of samples for operations number `start` up to `stop`.

        Args:
            view: view number, one for all or int64 [B].
            index: int64 [B].
            start: first operation.
            stop: the one after the last; None: all of them.

        Returns:
            int64 [draws, B], on the device of `index`.
        """
        view = view if isinstance(view, int) else view.to(index.device)
        draws = [
            (position, draw)
            for position in range(start, len(self.operations) if stop is None else stop)
            for draw in range(self.operations[position].num_draws)
        ]
        if self.enumerated:
            return self._enumerated(draws, view, index)
        return bits_KB(self.seed, draws, view, index)

    def _words(self, of: SampleViews, ahead: Tensor | None, start: int, stop: int) -> Tensor:
        """Those of some operations, from what was drawn ahead for all of them if anything was."""
        if ahead is None:
            return self.draw(of.view, of.index, start, stop)
        first, last = (
            sum(operation.num_draws for operation in self.operations[:position])
            for position in (start, stop)
        )
        return ahead[first:last]

    def _run(self, images: Tensor, words: Tensor, start: int, stop: int) -> Tensor:
        """The operations from number `start` up to `stop`, with words of theirs alone."""
        if not len(images):
            return images
        first = 0
        for operation in self.operations[start:stop]:
            assert not isinstance(operation, Mixing), "partners' images are at hand in `render`"
            images = operation(images, words[first : first + operation.num_draws])
            first += operation.num_draws
        return images

    def _enumerated(self, draws: Sequence[tuple[int, int]], view: View, index: Tensor) -> Tensor:
        """Bits that lead to outcome (view + a number drawn for the sample) of all outcomes."""
        if not draws:
            return index.new_empty((0, len(index)))
        choices = self._choices()
        state = as_int64(derive_seed(_ALL, self.seed))
        total = prod(choices.values())
        # The view is reduced first: near 2**63 the sum would overflow.
        outcome = (integers(mix(state, index), total) + view % total) % total
        words = {}
        for draw, count in reversed(choices.items()):
            # The word that every draw of `count` values, integer or bernoulli, reads as its value.
            words[draw] = (outcome % count) * _LARGEST_WORD // max(count - 1, 1) << 32
            outcome = outcome // count
        return torch.stack([words[draw] for draw in draws])

    def _choices(self) -> dict[tuple[int, int], int]:
        """How many values each (position, draw) of a finite pipeline chooses from."""
        found: dict[tuple[int, int], int] = {}
        for position, operation in enumerate(self.operations):
            choices = None if isinstance(operation, Mixing) else operation.choices
            if choices is None or prod(found.values()) * prod(choices) > _MOST_VIEWS:
                raise ConfigError(
                    f"views.count = 'all': {_name(operation)} has too many outcomes to show them "
                    "all: set views.count to a number"
                )
            found |= {(position, draw): count for draw, count in enumerate(choices)}
        return found


def _check_pixels(images: Tensor) -> None:
    """Refuse pixels that are scaled or normalised: views are made of bytes, and end as bytes."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"views of {images.dtype} pixels of shape {list(images.shape)}, wanted torch.uint8 "
            "[B, C, H, W]: give images as decoded; scaling and normalising belong to each model"
        )


def _name(operation: Operation | Mixing) -> str:
    return operation.name if isinstance(operation, TorchvisionOp) else NAMES[type(operation)]


def _describe(operation: Operation | Mixing) -> dict[str, Any]:
    if isinstance(operation, TorchvisionOp):
        return operation.describe()
    return {"name": _name(operation), **asdict(operation)}
