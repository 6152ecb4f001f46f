"""Images of one split as uint8 pixels, decoded once and shared by all processes and runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdscale.data.image_store import open_or_decode
from kdscale.data.source import open_source


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One split, decoded."""

    pixels: np.ndarray
    """uint8 [N, C, H, W], a read-only memory map; C is 1 for grey sets and 3 for all others."""
    labels: np.ndarray
    """int64 [N], -1 where a sample has no label."""
    classes: tuple[str, ...]
    """Names in label order; empty where nothing names them."""
    fingerprint: str
    """sha256 of shape, decoded pixels, labels and class names: the content, not the files."""
    name: str
    """The source as the user named it."""
    split: str
    """The split as the source calls it."""

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label (`load_images` never returns a set labelled in part)."""
        return bool((self.labels >= 0).all())

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Length of `classes`."""
        return len(self.classes)


def load_images(
    source: str,
    *,
    split: str,
    root: Path = Path("cache"),
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str | int] | None = None,
    require_labels: bool = True,
) -> ImageSet:
    """Find the split, decode it or reuse the decoded copy under `root/images`.

    Args:
        source: a hub name, a folder (parquet, arrow, images, `save_to_disk`) or one parquet or
            arrow file. What exists on disk wins over a hub name.
        split: "test" also finds a validation split, never the other way round.
        root: where decoded images are kept.
        image_column: found when None.
        label_column: found when None.
        classes: keep the rows of these classes only (names, or labels as integers), renumbered in
            this order. Where there are no labels at all, merely the names of the classes.
        require_labels: refuse a split without labels.

    Raises:
        DataError: the source, a column, a label or an image cannot be used.
        StorageError: the decoded images cannot be written.
    """
    encoded = open_source(
        source,
        split=split,
        image_column=image_column,
        label_column=label_column,
        classes=classes,
        require_labels=require_labels,
    )
    stored = open_or_decode(encoded, root / "images")
    return ImageSet(
        pixels=stored.pixels,
        labels=stored.labels,
        classes=encoded.classes,
        fingerprint=stored.fingerprint,
        name=source,
        split=encoded.split,
    )
