"""What a sheet shows: views of some samples, how they are mixed and what a teacher said of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdscale.cache.reader import CacheReader
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import Batch, DeviceImages
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.rng import derive_seed, permutation
from kdscale.errors import ViewMismatchError
from kdscale.formatting import number_of
from kdscale.preview.lettering import drawable
from kdscale.preview.sheet import Answer, Picture, Row, Share, Sheet
from kdscale.target_sources.stored_encoding import stored_encoding
from kdscale.targets import Targets, decode

_ANSWERS = 3
_CHOICE = derive_seed(0x73686F77)  # "show"


def spread(labels: np.ndarray, count: int, seed: int) -> Tensor:
    """Some samples, as equally many of each class as there are, by class.

    Args:
        labels: int64 [N], -1 where unlabelled.
        count: how many, at most N.
        seed: another one chooses other samples (and classes, where there are more than `count`).

    Returns:
        int64 [count], in the order of (label, index).
    """
    order = permutation(len(labels), _CHOICE, seed).numpy()
    by_class = np.argsort(labels[order], kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    rounds = np.empty_like(order)  # 0 for the first of each class, 1 for the second, ...
    rounds[by_class] = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
    chosen = order[np.argsort(rounds, kind="stable")[:count]]
    return torch.from_numpy(chosen[np.lexsort((chosen, labels[chosen]))])


class Names:
    """Names of classes in letters that can be drawn."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes

    def __getitem__(self, label: int) -> str:
        if label < 0:
            return "unlabelled"
        number = f"class {label}"
        return drawable(self._classes[label], number) if label < len(self._classes) else number


@dataclass(frozen=True, slots=True)
class Exhibits:
    """Which views of which samples, and who says what they are."""

    image_set: ImageDataset
    images: DeviceImages
    pipeline: Pipeline
    index: Tensor
    """int64 [B]"""
    num_views: int
    names: Names
    reader: CacheReader | None = None

    def sheet(self, title: str, lines: tuple[str, ...]) -> Sheet:
        """All of it, ready to be drawn."""
        columns = [list(self._column(view)) for view in range(self.num_views)]
        heads = [f"view {view}" for view in range(self.num_views)]
        if self.pipeline.operations:
            columns.insert(0, [Picture(self._clean(index)) for index in self.index])
            heads.insert(0, "clean")
        labels = self.images.labels_of(self.index).tolist()
        rows = [
            Row(self.names[label], f"image {index}", pictures)
            for label, index, pictures in zip(
                labels, self.index.tolist(), zip(*columns, strict=True), strict=True
            )
        ]
        lines = tuple(drawable(line, "?") for line in lines)
        return Sheet(drawable(title, "kdscale"), lines, tuple(heads), tuple(rows))

    def _clean(self, index: Tensor) -> np.ndarray:
        """The image before any draw, where sizes differ all of it: uint8 [C, H, W]."""
        encoded = self.image_set.pixels
        if isinstance(encoded, EncodedImages):
            return encoded.decode(int(index))
        return np.asarray(self.images.gather(index.view(1))[0][0])

    def _column(self, view: int) -> Iterator[Picture]:
        batch = self.images.render_views(self.pipeline, view, self.index)
        answers = [()] * len(self.index) if self.reader is None else self._answers(batch, view)
        for row, (pixels, said) in enumerate(zip(batch.pixels.numpy(), answers, strict=True)):
            yield Picture(pixels, self._shares(batch, row), tuple(said))

    def _shares(self, batch: Batch, row: int) -> tuple[Share, ...]:
        if batch.mix is None:
            return ()
        own = float(batch.mix.weight_B[row])
        partner = Share(self.names[int(batch.mix.labels_B[row])], 1 - own)
        return (Share(self.names[int(batch.labels[row])], own), *([partner] if own < 1 else []))

    def _answers(self, batch: Batch, view: int) -> Iterator[list[Answer]]:
        """The teacher's first answers to each picture of a batch, checked to be of its pixels."""
        assert self.reader is not None
        targets, digests_B = _stored(self.reader, view, self.index)
        _check_pixels(self.reader.location, view, batch, digests_B)
        probabilities_BA, classes_BA = targets.most_probable(_ANSWERS)
        for row, true in enumerate(_true_labels(batch)):
            yield [
                Answer(self.names[label], probability, label in true if true else None)
                for probability, label in zip(
                    probabilities_BA[row].tolist(), classes_BA[row].tolist(), strict=True
                )
            ]


def _stored(reader: CacheReader, view: int, index: Tensor) -> tuple[Targets, Tensor]:
    """Targets and digests int64 [B] of samples in a view; whole shards are read."""
    samples, manifest = index.numpy(), reader.manifest
    shards = samples // manifest.shard_samples
    rows: dict[str, np.ndarray] = {}
    for shard in np.unique(shards).tolist():
        start, _ = manifest.shard_range(shard)
        for name, values in reader.read_shard(view, shard).items():
            shape = (len(samples), *values.shape[1:])
            kept = rows.setdefault(name, np.zeros(shape, values.dtype))
            kept[shards == shard] = values[samples[shards == shard] - start]
    return decode(rows, stored_encoding(reader)), torch.from_numpy(rows["digests"].astype(np.int64))


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
    """What each picture shows: of a mixed one the larger share, both of equal ones."""
    for row, own in enumerate(batch.labels.tolist()):
        shares = {own: 1.0}
        if batch.mix is not None:
            partner, weight = int(batch.mix.labels_B[row]), float(batch.mix.weight_B[row])
            shares = {own: weight} if partner != own else shares
            shares.setdefault(partner, 1 - weight)
        yield {label for label, share in shares.items() if share == max(shares.values())} - {-1}
