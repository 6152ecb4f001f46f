"""Images of one split: of one size, decoded once for all processes and runs; or still encoded."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.decoded_folder import StoredImages
from kdscale.data.decoded_store import open_or_decode
from kdscale.data.encoded_images import EncodedImages
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.image_hashes import RowCheck, encoded_keys, keys_of_store
from kdscale.data.source import SourceOptions, open_source
from kdscale.formatting import number_of, printable
from kdscale.regular_files import path_inside

logger = logging.getLogger(__name__)
_DEFAULTS = SourceOptions()


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """One split."""

    pixels: np.ndarray | EncodedImages
    """uint8 [N, C, H, W], a read-only memory map; C is 1 for grey sets and 3 for all others. Where
    sizes differ, the encoded images; `kdscale.data.loader.DeviceImages` renders views of both."""
    labels: np.ndarray
    """int64 [N], -1 where a sample has no label."""
    classes: tuple[str, ...]
    """Names in label order; empty where nothing names them."""
    fingerprint: str
    """sha256 of shape, decoded pixels, labels and class names: the content, not the files. Where
    sizes differ, of encoded images, labels, class names and the version of the decoding rules."""
    name: str
    """The source as the user named it."""
    split: str
    """The split as the source calls it."""
    clean: tuple[str | Mapping[str, Any], ...] = ()
    """Operations without draws, as a recipe names them, of images that are not to be augmented."""
    passed_over: tuple[str, ...] = ()
    """Phrases about the files of the source that were not read."""
    keys: np.ndarray | None = None
    """Hash of each image, uint64 [N]; None where it is not stored: `image_keys` computes it."""
    row_check: RowCheck | None = None
    """Of decoded images that were not hashed when they were opened: checks the samples that are
    taken; None where all are known to be sound."""
    place: Callable[[int], str] = "sample {}".format
    """Names a sample in messages: its file, else its row in the source."""

    @property
    def one_size(self) -> bool:
        """Whether all images have the same height and width."""
        return not isinstance(self.pixels, EncodedImages)

    @property
    def key_kind(self) -> str:
        """What `image_keys` are hashes of: `pixels`, or the bytes of `encoded` images."""
        return "pixels" if self.one_size else "encoded"

    def image_keys(self) -> np.ndarray:
        """uint64 [N]: hash of each image, as stored or computed from all images."""
        if self.keys is not None:
            return self.keys
        if isinstance(self.pixels, EncodedImages):
            return encoded_keys(self.pixels.split)
        return keys_of_store(self.pixels)

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
    require_labels: bool = True,
    options: SourceOptions = _DEFAULTS,
) -> ImageDataset:
    """Find the split, decode it or reuse the decoded copy under `root/images`.

    Images of several sizes stay encoded, whatever their number.

    Args:
        source: a hub name, a folder (parquet, arrow, images, `save_to_disk`) or one parquet or
            arrow file. What exists on disk wins over a hub name.
        split: "test" also finds a validation split, never the other way round.
        root: folder below which decoded images are stored.
        require_labels: refuse a split without labels.
        options: which columns, classes and levels are read.

    Raises:
        DataError: the source, a column, a label or an image cannot be used.
        StorageError: the decoded images cannot be written.
    """
    encoded = open_source(source, split=split, require_labels=require_labels, options=options)
    logger.info("%s", describe_split(encoded), extra={"once": True})
    stored = open_or_decode(encoded, path_inside(root, "images"))
    if stored.several_frames:
        logger.info(
            "data: %s of split %r of %s with several frames or pages: the first of each is read",
            number_of(stored.several_frames, "image"), encoded.split, source, extra={"once": True},
        )  # fmt: skip
    return of_stored(encoded, stored, source)


def of_stored(encoded: EncodedSplit, stored: StoredImages, name: str) -> ImageDataset:
    """Return the data set of a split whose pixels are stored."""
    return ImageDataset(
        pixels=stored.pixels,
        labels=stored.labels,
        classes=encoded.classes,
        fingerprint=stored.fingerprint,
        name=name,
        split=encoded.split,
        keys=stored.keys,
        row_check=stored.row_check,
        passed_over=encoded.passed_over,
        place=encoded.short_place,
    )


def describe_split(encoded: EncodedSplit) -> str:
    """One line: how many images of which classes a split has, and which files were passed over."""
    number = number_of(len(encoded.labels), "image")
    if not encoded.classes:
        of_classes = "without labels"
    else:
        names = ", ".join(map(printable, encoded.classes[:5]))
        names += ", ..." if len(encoded.classes) > 5 else ""
        noun = "class" if len(encoded.classes) == 1 else "classes"
        of_classes = f"of {len(encoded.classes):,} {noun} ({names})"
        present = len(np.unique(encoded.labels[encoded.labels >= 0]))
        if present == 0:
            of_classes = f"without labels, {of_classes}"
        elif present < len(encoded.classes):
            of_classes += f", {len(encoded.classes) - present:,} of them without an image"
    notes = [f"data: {number} {of_classes}, split {encoded.split!r} of {encoded.name}"]
    if encoded.cut:
        notes.append(encoded.cut)
    if encoded.num_files:
        notes.append(f"{number_of(encoded.num_files, 'image')} in files that the table names")
    if encoded.passed_over:
        notes.append(f"passed over: {'; '.join(encoded.passed_over)}")
    return "; ".join(notes)
