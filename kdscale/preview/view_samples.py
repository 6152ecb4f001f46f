"""Content of a preview: views of some samples, their mixing, the teacher's predictions."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib.font_manager import findfont, get_font
from torch import Tensor

from kdscale.cache.reader import CacheReader
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import Batch, DeviceImages
from kdscale.data.rng import derive_seed
from kdscale.data.sample import balanced_sample
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ViewMismatchError
from kdscale.formatting import number_of
from kdscale.preview.sheet_drawing import (
    FONT,
    ClassShare,
    Prediction,
    PreviewSheet,
    SampleRow,
    ViewTile,
)
from kdscale.target_sources.buffer import stored_codec
from kdscale.targets import FeatureTargets, Targets

_PREDICTIONS = 3
_CHOICE = derive_seed(0x73686F77)  # "show"


def balanced_samples(labels: np.ndarray, count: int, seed: int) -> Tensor:
    """Choose samples, equally many of each class as far as there are.

    Args:
        labels: int64 [N], -1 where unlabelled.
        count: how many, at most N.
        seed: chooses the samples, and the classes where there are more than `count`.

    Returns:
        int64 [count], in the order of (label, index).
    """
    chosen = balanced_sample(labels, count, _CHOICE, seed).numpy()
    return torch.from_numpy(chosen[np.lexsort((chosen, labels[chosen]))])


class ClassNames:
    """Names of classes in letters that the font has."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes

    def __getitem__(self, label: int) -> str:
        if label < 0:
            return "unlabelled"
        number = f"class {label}"
        return drawable(self._classes[label], number) if label < len(self._classes) else number


@dataclass(frozen=True, slots=True)
class ViewSamples:
    """Samples and views to draw, with the cache that holds the teacher's targets."""

    image_set: ImageDataset
    """The images before any view."""
    images: DeviceImages
    """The same images on a device."""
    pipeline: Pipeline
    """The augmentation."""
    index: Tensor
    """int64 [B], samples to draw."""
    num_views: int
    """Number of views of each, from view 0 on."""
    names: ClassNames
    reader: CacheReader | None = None
    """Cache with the teacher's targets; None to draw views alone."""

    def sheet(self, title: str, lines: tuple[str, ...]) -> PreviewSheet:
        """Return all views and predictions, ready to draw."""
        columns = [list(self._column(view)) for view in range(self.num_views)]
        heads = [f"view {view}" for view in range(self.num_views)]
        if self.pipeline.operations:
            columns.insert(0, [ViewTile(self._clean(index)) for index in self.index])
            heads.insert(0, "clean")
        labels = self.images.host_labels[self.index].tolist()
        rows = [
            SampleRow(self.names[label], f"image {index}", tiles)
            for label, index, tiles in zip(
                labels, self.index.tolist(), zip(*columns, strict=True), strict=True
            )
        ]
        lines = tuple(drawable(line, "?") for line in lines)
        return PreviewSheet(drawable(title, "kdscale"), lines, tuple(heads), tuple(rows))

    def _clean(self, index: Tensor) -> np.ndarray:
        """Return an image before augmentation, at its own size: uint8 [C, H, W]."""
        encoded = self.image_set.pixels
        if isinstance(encoded, EncodedImages):
            return encoded.decode(int(index))
        return np.asarray(self.images.gather(index.view(1))[0][0])

    def _column(self, view: int) -> Iterator[ViewTile]:
        batch = self.images.render_views(self.pipeline, view, self.index)
        none: list[list[Prediction]] = [[]] * len(self.index)
        found = none if self.reader is None else self._predictions(batch, view)
        for row, (pixels, best) in enumerate(zip(batch.pixels.numpy(), found, strict=True)):
            yield ViewTile(pixels, self._shares(batch, row), tuple(best))

    def _shares(self, batch: Batch, row: int) -> tuple[ClassShare, ...]:
        if batch.mix is None:
            return ()
        own = float(batch.mix.weight_B[row])
        partner = ClassShare(self.names[int(batch.mix.labels_B[row])], 1 - own)
        return (
            ClassShare(self.names[int(batch.labels[row])], own),
            *([partner] if own < 1 else []),
        )

    def _predictions(self, batch: Batch, view: int) -> Iterator[list[Prediction]]:
        """Return the teacher's most probable classes, checked to be of these very pixels."""
        assert self.reader is not None
        targets, digests_B = _stored(self.reader, view, self.index)
        _check_pixels(self.reader.location, view, batch, digests_B)
        if isinstance(targets, FeatureTargets):
            yield from ([] for _ in range(len(self.index)))
            return
        probabilities_BA, classes_BA = targets.most_probable(_PREDICTIONS)
        for row, true in enumerate(_true_labels(batch)):
            yield [
                Prediction(self.names[label], probability, label in true if true else None)
                for probability, label in zip(
                    probabilities_BA[row].tolist(), classes_BA[row].tolist(), strict=True
                )
            ]


def _stored(reader: CacheReader, view: int, index: Tensor) -> tuple[Targets, Tensor]:
    """Read targets and digests int64 [B] of samples in a view, by whole shards."""
    samples, manifest = index.numpy(), reader.manifest
    shards = samples // manifest.shard_samples
    rows: dict[str, np.ndarray] = {}
    for shard in np.unique(shards).tolist():
        start, _ = manifest.shard_range(shard)
        for name, values in reader.read_shard(view, shard).items():
            shape = (len(samples), *values.shape[1:])
            chosen = rows.setdefault(name, np.zeros(shape, values.dtype))
            chosen[shards == shard] = values[samples[shards == shard] - start]
    digests = torch.from_numpy(rows["digests"].astype(np.int64))
    return stored_codec(reader).decode(rows), digests


def _check_pixels(location: str, view: int, batch: Batch, digests_B: Tensor) -> None:
    differing = batch.index[digest(batch.pixels) != digests_B].tolist()
    if differing:
        raise ViewMismatchError(
            f"{location}: in view {view}, {len(differing)} of "
            f"{number_of(len(batch.index), 'sample')} (first: {differing[0]}) are not the pixels "
            "the teacher saw: the decoder or the views' code have changed. Restore them, or build "
            "a new cache"
        )


def _true_labels(batch: Batch) -> Iterator[set[int]]:
    """Return the true classes of each view: of a mixed one the larger share, or both."""
    for row, own in enumerate(batch.labels.tolist()):
        shares = {own: 1.0}
        if batch.mix is not None:
            partner, weight = int(batch.mix.labels_B[row]), float(batch.mix.weight_B[row])
            shares = {own: weight} if partner != own else shares
            shares.setdefault(partner, 1 - weight)
        yield {label for label, share in shares.items() if share == max(shares.values())} - {-1}


def drawable(text: str, otherwise: str) -> str:
    """Return a text on one line in letters that the font has, "?" for others.

    A text of which less than half can be drawn, as in a script that the font lacks, is `otherwise`.
    """
    text = " ".join(text.split())
    known = [letter.isprintable() and ord(letter) in _letters() for letter in text]
    if 2 * sum(known) <= len(text):
        return otherwise
    return "".join(letter if ok else "?" for letter, ok in zip(text, known, strict=True))


@cache
def _letters() -> Container[int]:
    return get_font(findfont(FONT)).get_charmap()
