"""Caches in data set repositories of the Hugging Face Hub: see `kdscale.hub`."""

from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

from kdscale.atomic_write import temporary_folder
from kdscale.cache.catalog import describe
from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest, write_manifest
from kdscale.cache.stores.store import Place
from kdscale.cache.transfer import transfer
from kdscale.errors import CacheMismatchError, CacheNotFoundError
from kdscale.formatting import number_of
from kdscale.hub import HubRepository
from kdscale.local_paths import without_paths
from kdscale.regular_files import path_inside


def push_to_hub(source: Place, url: str) -> dict[str, int]:
    """Upload a finished cache, with a card, in one commit; then compare all checksums there.

    Paths of this machine, which say where images, class names and teacher lay, are left out.

    Raises:
        CacheMismatchError: another cache is there.
        StorageError: the Hub refuses, is not reached, or stores other bytes.
    """
    repository = HubRepository.parse(url, "dataset")
    with temporary_folder(Path(gettempdir()), "hub") as temporary:
        staged = temporary / "cache.zarr"
        done = transfer(source, staged, large=True)
        manifest = _without_paths(read_manifest(staged))
        write_manifest(staged, manifest)
        _check_same(repository, manifest, temporary / "there")
        text = card(manifest, describe(staged, manifest)["bytes"], url)
        repository.upload(staged, message=f"kdscale cache {manifest.id}", card=text)
    return done


def pull_from_hub(url: str, destination: Place) -> dict[str, int]:
    """Download a cache and copy it to its place, every object checked.

    Raises:
        CacheNotFoundError: no cache is there.
        KdscaleError: see `kdscale.cache.transfer`.
        StorageError: the repository is not there, or the Hub is not reached.
    """
    repository = HubRepository.parse(url, "dataset")
    with temporary_folder(Path(gettempdir()), "hub") as temporary:
        repository.download(temporary)
        place = path_inside(temporary, repository.folder) if repository.folder else temporary
        if not (place / MANIFEST_KEY).is_file():
            raise CacheNotFoundError(f"no cache at {url}: the repository has no zarr.json there")
        return transfer(place, destination)


def _without_paths(manifest: Manifest) -> Manifest:
    """Return a manifest of the same identity whose names of places are no paths of this machine."""
    places = ("source", "class_names")
    named = {key: without_paths(manifest.dataset[key]) for key in places if key in manifest.dataset}
    teacher = {**manifest.teacher, "model": without_paths(manifest.teacher.get("model"))}
    return replace(manifest, dataset={**manifest.dataset, **named}, teacher=teacher)


def _check_same(repository: HubRepository, ours: Manifest, temporary: Path) -> None:
    """Stop where another cache, or a larger one, lies there."""
    there = repository.fetch(MANIFEST_KEY, temporary)
    if there is None:
        return
    found = read_manifest(there.parent)
    if found.id != ours.id or found.num_views > ours.num_views:
        raise CacheMismatchError(
            f"{repository.url} holds another cache ({found.id}, "
            f"{number_of(found.num_views, 'view')}) than this ({ours.id}, "
            f"{number_of(ours.num_views, 'view')}): name another repository or path"
        )


def card(manifest: Manifest, size: int, url: str) -> str:
    """Return the repository's README.md: what the cache is, and how to use it."""
    dataset, teacher = manifest.dataset, manifest.teacher
    accuracy = teacher.get("top1_accuracy")
    known = "" if accuracy is None else f" (top-1 on clean training images {100 * accuracy:.1f} %)"
    fidelity = "\n".join(f"| {name} | {value} |" for name, value in manifest.fidelity.items())
    operations = "\n".join(f"* `{one}`" for one in manifest.views["operations"])
    return f"""---
tags:
- knowledge-distillation
- kdscale
- zarr
task_categories:
- image-classification
viewer: false
---

# Outputs of a teacher for {dataset.get("source", "images")}

A [Zarr](https://zarr.dev) cache of kdscale, format version {manifest.format_version}, `{manifest.id}`.

| what | |
| --- | --- |
| teacher | `{teacher.get("model")}`{known}, weights `{teacher["weights_sha256"][:12]}…` |
| data set | {dataset.get("source")}, split {dataset.get("split")}: {number_of(manifest.num_samples, "image")} of {number_of(manifest.num_classes, "class", "classes")}; the images are not in here |
| views | {manifest.num_views}, seed {manifest.views["seed"]} |
| encoding | {manifest.encoding}, {manifest.bytes_per_target} bytes a sample |
| size | {size / 1e6:.1f} MB |

## Views

{operations or "The images as they are."}

## Fidelity

What the encoding changes, measured when the cache was built:

| measure | |
| --- | --- |
{fidelity or "| (not measured) | |"}

## Use

```bash
kdscale cache pull {url}
```

## Licence

Not stated yet: the owner of this repository states it; it depends on the teacher and the images.
"""  # noqa: E501
