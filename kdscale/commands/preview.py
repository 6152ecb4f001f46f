"""Preview views side by side, with the teacher's predictions."""

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kdscale.atomic_write import write_output
from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.store import Place, name_of
from kdscale.config import Recipe
from kdscale.data.image_dataset import ImageDataset, load_images
from kdscale.data.loader import DeviceImages
from kdscale.data.source import SourceOptions
from kdscale.data.split_cut import SplitCut
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import CacheMismatchError, ConfigError, DataError
from kdscale.experiment.datasets import source_path
from kdscale.experiment.experiment import Experiment
from kdscale.experiment.model_line import split_text
from kdscale.experiment.views import num_views as count_views
from kdscale.preview.sheet_drawing import PreviewSheet, draw
from kdscale.preview.view_samples import ClassNames, ViewSamples, balanced_samples
from kdscale.target_sources.compatibility import differing_images

log = logging.getLogger(__name__)

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}
_SAMPLES, _VIEWS = 10, 6
_CPU = torch.device("cpu")


def preview_cache(
    path: Place,
    *,
    out: Path,
    samples: int | None = None,
    views: int | None = None,
    data: str | None = None,
    cache_root: Path,
    seed: int = 0,
) -> Path:
    """Draw views of a cache with the teacher's most probable classes.

    Args:
        path: the cache's folder or URL.
        out: the picture to write, by its ending .png, .jpg or .webp.
        samples: number of rows; None for 10, or all if there are fewer.
        views: number of columns, from view 0 on; None for 6, or all if there are fewer.
        data: a local copy of the data set; None for the place that the cache's build read.
        cache_root: folder of decoded images.
        seed: chooses the samples, which are spread over the classes.

    Returns:
        `out`.

    Raises:
        ConfigError: another ending, or more samples or views than there are.
        CacheMismatchError: the data set is not the one that the cache was built from.
        ViewMismatchError: the views' pixels are not those of the cache's build.
        KdscaleError: cache or data cannot be read, or the picture not be written.
    """
    _check_ending(out)
    cache = PreviewedCache(path, data=data, cache_root=cache_root)
    return _save(cache.sheet(samples, views, seed), out)


class PreviewedCache:
    """A cache and the images that it was built from."""

    def __init__(self, path: Place, *, data: str | None, cache_root: Path) -> None:
        """Open cache and images; arguments and errors as in `preview_cache`."""
        self._path, self._reader = path, CacheReader(path)
        self.manifest, self._labels = self._reader.manifest, self._reader.labels()
        labelled = bool((self._labels >= 0).all())
        self._images = _cached_images(path, self.manifest, data, cache_root, labelled=labelled)

    def sheet(self, samples: int | None, views: int | None, seed: int) -> PreviewSheet:
        """Return views of some samples with the teacher's predictions."""
        manifest = self.manifest
        num_views = _within(views, _VIEWS, manifest.num_views, "views", self._path)
        num_samples = _within(samples, _SAMPLES, manifest.num_samples, "samples", self._path)
        chosen = ViewSamples(
            self._images,
            DeviceImages(self._images, _CPU),
            Pipeline.from_description(manifest.views),
            balanced_samples(self._labels, num_samples, seed),
            num_views,
            ClassNames(manifest.dataset["classes"]),
            self._reader,
        )
        lines = (
            f"{_teacher(manifest)} · {_of_all(num_views, manifest.num_views)} of "
            f"{_count(manifest.num_samples, 'image')} · {manifest.dataset['source']}, split "
            f"{manifest.dataset['split']}",
            _in_words(chosen.pipeline),
        )
        return chosen.sheet(name_of(self._path), lines)


def preview_views(
    experiment: Experiment,
    *,
    out: Path,
    samples: int | None = None,
    views: int | None = None,
    seed: int = 0,
) -> Path:
    """Draw a recipe's views, before anything is built; arguments as in `preview_cache`.

    Raises:
        ConfigError: as in `preview_cache`, or of the views' settings.
        KdscaleError: the data cannot be read, or the picture not be written.
    """
    _check_ending(out)
    experiment = replace(experiment, require_labels=False)
    recipe, num_views = experiment.recipe, _num_views(experiment.recipe, views)
    images = experiment.train_set
    log.info("views of %s; uint8 on %s", split_text(images), _CPU)
    num_samples = _within(samples, _SAMPLES, images.num_samples, "samples", recipe.name)
    chosen = ViewSamples(
        images,
        DeviceImages(images, _CPU),
        experiment.views,
        balanced_samples(images.labels, num_samples, seed),
        num_views,
        ClassNames(images.classes),
    )
    fixed = recipe.views.mode == "fixed"
    of_all = "views" if fixed else _of_all(num_views, count_views(recipe))
    lines = (
        f"recipe · teacher {recipe.teacher.model}, not run yet · {of_all} of "
        f"{_count(images.num_samples, 'image')} · {images.name}, split {images.split}",
        _in_words(chosen.pipeline),
    )
    return _save(chosen.sheet(recipe.name, lines), out)


def _num_views(recipe: Recipe, views: int | None) -> int:
    if recipe.views.mode == "fixed":  # the student sees another view each epoch
        return views or _VIEWS
    limit = count_views(recipe)
    if views is not None and views > limit and recipe.views.operations:
        raise ConfigError(
            f"--views {views}: recipe {recipe.name!r} has {limit}: choose fewer, or more with "
            f"--set views.count={views}"
        )
    return _within(views, _VIEWS, limit, "views", recipe.name)


def _within(wanted: int | None, default: int, limit: int, what: str, place: object) -> int:
    if wanted is not None and wanted > limit:
        raise ConfigError(f"--{what} {wanted}: {place} has {limit} {what}: choose at most {limit}")
    return min(default, limit) if wanted is None else wanted


# --------------------------------------------------------------------------- data


def _cached_images(
    path: Place, manifest: Manifest, data: str | None, cache_root: Path, *, labelled: bool
) -> ImageDataset:
    """Load the images that a cache was built from, checked by their fingerprint.

    Raises:
        CacheMismatchError: the images are others, or have changed.
        DataError: there are none.
    """
    source, share = data or manifest.dataset["source"], manifest.dataset.get("test")
    names = tuple(manifest.dataset["classes"])
    # The manifest does not state whether a recipe chose among classes. To name them all changes
    # nothing of a labelled set, but an unlabelled one may have had no names.
    problem: Exception | None = None
    options = SourceOptions(
        image_column=manifest.dataset.get("image_column"),
        label_column=manifest.dataset.get("label_column"),
        config=manifest.dataset.get("config"),
        revision=None if data else manifest.dataset.get("revision"),
        grey_range=_grey_range(manifest),
        class_names=manifest.dataset.get("class_names"),
        unlabelled=(manifest.dataset["split"],) if manifest.dataset.get("unlabelled") else (),
        cut=SplitCut(share, test=False, test_split=manifest.dataset["split"]) if share else None,
    )
    for classes in (names, None) if labelled else (None, names):
        try:
            images = load_images(
                source_path(source),
                split=manifest.dataset["split"],
                root=cache_root,
                require_labels=False,
                options=replace(options, classes=classes),
            )
        except DataError as error:
            problem = error
            continue
        if images.fingerprint == manifest.dataset["fingerprint"]:
            return images
        problem = CacheMismatchError(
            f"{path} was built from images with fingerprint "
            f"{manifest.dataset['fingerprint'][:12]}… ({manifest.dataset['source']}, split "
            f"{manifest.dataset['split']!r}), those of {source} have {images.fingerprint[:12]}…: "
            + "".join(f"{line}; " for line in differing_images(path, manifest, images))
            + "name the data set that it was built from with --data"
        )
    assert problem is not None, "either attempt returns or leaves a problem"
    raise problem


def _grey_range(manifest: Manifest) -> tuple[float, float] | None:
    levels = manifest.dataset.get("grey_range")
    return None if levels is None else (float(levels[0]), float(levels[1]))


# --------------------------------------------------------------------------- words


def _teacher(manifest: Manifest) -> str:
    accuracy = manifest.teacher.get("top1_accuracy")
    sure = "" if accuracy is None else f" (top-1 {100 * accuracy:.1f} % on clean images)"
    return f"teacher {manifest.teacher['model']}{sure}"


def _of_all(number: int, total: int) -> str:
    return _count(total, "view") if number == total else f"{number} of {_count(total, 'view')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _in_words(pipeline: Pipeline) -> str:
    """Return the operations with those arguments that are not their defaults."""
    described = pipeline.describe()["operations"]
    if not described:
        return "views: unchanged images"
    words = [
        _operation(operation, entry)
        for operation, entry in zip(pipeline.operations, described, strict=True)
    ]
    return f"views: {' + '.join(words)} · seed {pipeline.seed}"


def _operation(operation: Any, described: Mapping[str, Any]) -> str:
    usual = {field.name: field.default for field in fields(operation)}
    settings = [
        f"{key.replace('_', ' ')} {_value(value)}"
        for key, value in described.items()
        if key not in ("name", "libraries") and usual.get(key, MISSING) != value
    ]
    name = described["name"].removeprefix("random_").replace("_", " ")
    return f"{name} ({', '.join(settings)})" if settings else name


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --------------------------------------------------------------------------- the file


def _check_ending(out: Path) -> None:
    if out.suffix.lower() not in _FORMATS:
        raise ConfigError(f"--out {out}: the ending names the format: wanted {', '.join(_FORMATS)}")


def _save(sheet: PreviewSheet, out: Path) -> Path:
    """Write the file, whole or not at all."""
    write_output(out, encoded(draw(sheet), out.suffix.lower()))
    return out


def encoded(picture: Image.Image, ending: str) -> bytes:
    """Encode a picture in the format of a file's ending."""
    kind, options = _FORMATS[ending]
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
