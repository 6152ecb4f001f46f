"""A data set for any loader and any trainer: pixels of views, labels and the teacher's logits."""

import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdscale.api.given_settings import images_root
from kdscale.api.given_views import Views, pipeline_of
from kdscale.cache.manifest import read_manifest
from kdscale.cache.stores.store import Place, is_remote
from kdscale.data.given_images import IN_MEMORY, MapDataset, images_of
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import Batch, DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import CacheMismatchError, ConfigError, OutOfRangeError
from kdscale.formatting import number_of
from kdscale.target_sources.cached import CachedTargets
from kdscale.targets import FeatureTargets, all_classes

_CPU = torch.device("cpu")


def _sample(number: int) -> str:
    """Return how messages name a sample in a worker process, which has no encoded images."""
    return f"sample {number}"


class CachedDataset(Dataset[tuple[Tensor, ...]]):
    """The views of an epoch with their labels and the teacher's logits, from a finished cache.

    A sample is `(pixels, label, logits)`, with the teacher's features behind them if any are
    requested: pixels uint8 [C, H, W], label int64 [], logits float32 [classes]. Where the views mix
    samples, the label is float32 [classes], the share of each class. Of a cache without logits a
    sample is `(pixels, label)` and the features; the label of an unlabelled image is -1. The images
    are read from the data set, the views are made anew, and their digests are compared with those
    that the teacher was given, as in kdscale's own training.

    Call `set_epoch` before each epoch, as of a `DistributedSampler`; workers that persist see it.
    `__getitems__` makes a whole batch at once, which `DataLoader` uses. Each worker process holds
    the targets of one epoch: samples times the stored bytes of a target.

    Args:
        cache: folder or URL of the cache.
        dataset: the data set that the cache was built of, in the same order, or what
            `kdscale.images_of` or `kdscale.load_images` returned. Its decoded images are stored
            beside the cache.
        views: those of the cache, where they are transforms of your own, which a cache only names.
        num_views: use only the cache's first views; None = all.
        features: modules of the teacher whose stored features are wanted; of a cache without logits
            all, if none are named.

    Raises:
        CacheError: the cache is not there, not finished or damaged.
        CacheMismatchError: it was built of another data set, or other views.
        ConfigError: its views need transforms of your own.
    """

    def __init__(
        self,
        cache: str | Path,
        dataset: MapDataset | ImageDataset,
        *,
        views: Views | None = None,
        num_views: int | None = None,
        features: Sequence[str] = (),
    ) -> None:
        # Workers and later epochs open it again, maybe from another folder.
        self.cache: Place = cache if is_remote(cache) else Path(cache).absolute()
        """Folder or URL of the cache."""
        self.manifest = read_manifest(self.cache)
        """The description of the cache."""
        self.images = self._read(dataset)
        """The data set, as kdscale reads it."""
        self._views_are_given = views is not None
        self.pipeline = self._views(views)
        """The views."""
        self.num_views = num_views if num_views is not None else self.manifest.num_views
        """Number of views that epochs go through."""
        self.class_names = tuple(self.images.classes)
        """Names of the classes, in the order of the logits."""
        self._features = tuple(features)
        if not (features or self.manifest.target_encoding.has_logits):
            self._features = tuple(one["module"] for one in self.manifest.features)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._opened: tuple[CachedTargets, DeviceImages] | None = None
        self._started = -1
        self._open()  # what cannot be used is refused here, before a loader's workers start
        self.close()

    def _read(self, dataset: MapDataset | ImageDataset) -> ImageDataset:
        """Return the data set after comparing it with the one that the cache was built of."""
        stated = self.manifest.dataset
        images = dataset
        if not isinstance(images, ImageDataset):
            images = images_of(
                images,
                class_names=stated["classes"] or None,
                name=str(stated["source"]).removeprefix(IN_MEMORY),
                root=images_root(self.cache),
            )
        if images.fingerprint != stated["fingerprint"]:
            raise CacheMismatchError(
                f"{self.cache} was built of other images, labels or classes than this data set "
                f"({number_of(self.manifest.num_samples, 'sample')}, here "
                f"{number_of(images.num_samples, 'sample')}): give the data set that it was "
                "built of, in the same order, without augmentation"
            )
        if not images.labelled and "pairing" in self.manifest.views:
            raise ConfigError(
                f"{self.cache} has views that mix samples, and its samples have no labels to mix: "
                "use `kdscale train`, which learns from logits alone"
            )
        return images

    def _views(self, views: Views | None) -> Pipeline:
        """Return the given views under the cache's seed, or those that the cache describes."""
        described = self.manifest.views
        if views is None:
            return Pipeline.from_description(described)
        return pipeline_of(views, num_samples=self.manifest.num_samples, seed=described["seed"])

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.images.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the view that every sample has; workers see it before their next batch."""
        epoch = operator.index(epoch)
        if epoch < 0:
            raise OutOfRangeError(f"epoch {epoch}: epochs are counted from 0")
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return one sample.

        Raises:
            OutOfRangeError: an `IndexError`: there is no such sample.
            ViewMismatchError: the pixels are not those that the teacher was given.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Return several samples, made together."""
        count = len(self)
        outside = [one for one in indices if not -count <= one < count]
        if outside:
            raise OutOfRangeError(f"sample {outside[0]}: the data set has samples 0..{count - 1}")
        targets, images = self._open()
        index = torch.tensor([one % count for one in indices], dtype=torch.int64)
        view = targets.schedule.view(self._started, index)
        batch = images.render_views(targets.pipeline, view, index)
        found = targets.targets(batch)
        targets.finish_checks()
        columns: list[Tensor] = [batch.pixels, self._labels(batch)]
        if not isinstance(found, FeatureTargets):
            columns.append(all_classes(found, "a data set"))
        columns += [found.features[name] for name in self._features]
        return list(zip(*(one.unbind(0) for one in columns), strict=True))

    def _labels(self, batch: Batch) -> Tensor:
        if batch.mix is None:
            return batch.labels
        classes = len(self.class_names)
        own, other = (
            torch.nn.functional.one_hot(one, classes).float()
            for one in (batch.labels, batch.mix.labels_B)
        )
        share = batch.mix.weight_B[:, None]
        return share * own + (1 - share) * other

    def _open(self) -> tuple[CachedTargets, DeviceImages]:
        """Open the cache in this process, and bring in the targets of the epoch."""
        if self._opened is None:
            targets = CachedTargets.open(
                self.cache,
                num_views=self.num_views,
                pipeline=self.pipeline,
                features=self._features,
            )
            self._opened = targets, DeviceImages(self.images, _CPU)
        epoch = int(self._epoch)
        if epoch != self._started:
            self._opened[0].start_epoch(epoch)
            self._started = epoch
        return self._opened

    def close(self) -> None:
        """Stop reading ahead; the next sample opens the cache again."""
        if self._opened is not None:
            self._opened[0].close()
        self._opened, self._started = None, -1

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: it opens the cache and maps the pixels by itself."""
        state = self.__dict__ | {"_opened": None, "_started": -1}
        if not self._views_are_given:  # torchvision's by name hold functions that cannot be sent
            del state["pipeline"]
        pixels = self.images.pixels
        if isinstance(pixels, np.memmap) and pixels.filename is not None:
            nothing = np.empty(0, dtype=np.uint8)
            state["images"] = replace(self.images, pixels=nothing, place=_sample)
            state["_pixels_file"] = str(pixels.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` returned."""
        file = state.pop("_pixels_file", None)
        if file is not None:
            pixels = np.load(file, mmap_mode="r", allow_pickle=False)
            state["images"] = replace(state["images"], pixels=pixels)
        self.__dict__.update(state)
        if not self._views_are_given:
            self.pipeline = self._views(None)
