"""Caches in data set repositories of the Hugging Face Hub: one commit up, one snapshot down.

Address and token are those of `huggingface_hub`: `HF_ENDPOINT`, `HF_TOKEN`, or `hf auth login`.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from kdscale.atomic_write import temporary_folder
from kdscale.cache.manifest import MANIFEST_KEY, Manifest, read_manifest
from kdscale.cache.stored_bytes import describe
from kdscale.cache.stores.store import Place
from kdscale.cache.transfer import transfer
from kdscale.errors import CacheMismatchError, CacheNotFoundError, ConfigError, StorageError
from kdscale.formatting import number_of
from kdscale.regular_files import check_key, path_inside

log = logging.getLogger(__name__)

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:/(.+))?")
_CARD = "README.md"
_KIND = "dataset"


def is_hub(place: Place) -> bool:
    """Whether a place is a repository of the Hub."""
    return str(place).startswith("hf://")


def push_to_hub(source: Place, url: str, api: HfApi | None = None) -> dict[str, int]:
    """Upload a finished cache, with a card, in one commit; then compare all checksums there.

    A repository that is not there is created, private. Files that it has already are not uploaded
    again.

    Raises:
        CacheMismatchError: another cache is there.
        StorageError: the Hub refuses, is not reached, or keeps other bytes.
    """
    repository, folder = parse(url)
    api = api or HfApi()
    with temporary_folder(Path(gettempdir()), "hub") as temporary, _messages(url):
        staged = temporary / "cache.zarr"
        done = transfer(source, staged, large=True)
        manifest = read_manifest(staged)
        _check_same(api, repository, folder, url, manifest, temporary / "there")
        api.create_repo(repository, repo_type=_KIND, private=True, exist_ok=True)
        if not api.file_exists(repository, _CARD, repo_type=_KIND):
            text = card(manifest, describe(staged, manifest)["bytes"], repository, folder)
            where = staged if folder is None else temporary
            (where / _CARD).write_text(text)
            if folder is not None:
                api.upload_file(
                    path_or_fileobj=where / _CARD, path_in_repo=_CARD, repo_id=repository,
                    repo_type=_KIND,
                )  # fmt: skip
        api.upload_folder(
            repo_id=repository, folder_path=staged, path_in_repo=folder, repo_type=_KIND,
            commit_message=f"kdscale cache {manifest.id}",
        )  # fmt: skip
        _check_uploaded(api, repository, folder, url, staged)
    return done


def pull_from_hub(url: str, destination: Place, api: HfApi | None = None) -> dict[str, int]:
    """Download a cache and copy it to its place, every object checked.

    Raises:
        CacheNotFoundError: no cache is there.
        KdscaleError: see `kdscale.cache.transfer`.
        StorageError: the Hub refuses, or is not reached.
    """
    repository, folder = parse(url)
    api = api or HfApi()
    with temporary_folder(Path(gettempdir()), "hub") as temporary, _messages(url):
        api.snapshot_download(
            repository, repo_type=_KIND, local_dir=temporary,
            revision=_checked_revision(api, repository, url),
            allow_patterns=None if folder is None else f"{folder}/*",
        )  # fmt: skip
        place = path_inside(temporary, folder) if folder else temporary
        if not (place / MANIFEST_KEY).is_file():
            raise CacheNotFoundError(f"no cache at {url}: the repository has no zarr.json there")
        return transfer(place, destination)


def _checked_revision(api: HfApi, repository: str, url: str) -> str | None:
    """Return the newest commit, once no name of its files could lead out of a folder.

    Raises:
        UnsafePathError: naming such a file; nothing was downloaded.
    """
    about = api.dataset_info(repository)
    for file in about.siblings or ():
        check_key(file.rfilename, url)
    return about.sha


def parse(url: str) -> tuple[str, str | None]:
    """Return the repository of a URL and the path in it.

    Raises:
        ConfigError: the URL names no data set repository, or a path that leads out of it.
    """
    found = _URL.fullmatch(url)
    if found is None or not {".", ".."}.isdisjoint(url.split("/")):
        raise ConfigError(f"{url} is no repository: hf://datasets/USER/NAME[/PATH] is wanted")
    if found[2] is not None:
        check_key(found[2], f"hf://datasets/{found[1]}")
    return found[1], found[2]


@contextmanager
def _messages(url: str) -> Iterator[None]:
    """Turn errors of the Hub into one line each."""
    try:
        yield
    except RepositoryNotFoundError:
        raise CacheNotFoundError(
            f"{url} is not there, or is private and the token in HF_TOKEN may not read it"
        ) from None
    except Exception as error:
        if not _is_the_hubs(error):
            raise
        reason = str(error).strip().partition("\n")[0][:300]
        raise StorageError(
            f"{url}: {reason}: check the name, the network and the token (HF_TOKEN, or `hf auth "
            "login`), then run the same command again"
        ) from None


def _is_the_hubs(error: Exception) -> bool:
    """Whether the Hub, the way there, or its client failed; which client it has, changed."""
    return type(error).__module__.startswith(("huggingface_hub", "http", "requests", "urllib3"))


def _key(folder: str | None, key: str) -> str:
    return key if folder is None else f"{folder}/{key}"


def _check_same(
    api: HfApi, repository: str, folder: str | None, url: str, ours: Manifest, there: Path
) -> None:
    """Stop where another cache, or a larger one, lies there."""
    try:
        api.hf_hub_download(
            repository, _key(folder, MANIFEST_KEY), repo_type=_KIND, local_dir=there
        )
    except (RepositoryNotFoundError, EntryNotFoundError):
        return
    found = read_manifest(there / (folder or ""))
    if found.id != ours.id or found.num_views > ours.num_views:
        raise CacheMismatchError(
            f"{url} holds another cache ({found.id}, {number_of(found.num_views, 'view')}) than "
            f"this ({ours.id}, {number_of(ours.num_views, 'view')}): name another repository or "
            "path"
        )


def _check_uploaded(
    api: HfApi, repository: str, folder: str | None, url: str, staged: Path
) -> None:
    files = {file.relative_to(staged).as_posix(): file for file in staged.rglob("*")}
    wanted = {_key(folder, key): file for key, file in files.items() if file.is_file()}
    found = {one.path: one for one in api.get_paths_info(repository, [*wanted], repo_type=_KIND)}
    wrong = [key for key, file in wanted.items() if not _is_stored(found.get(key), file)]
    if wrong:
        raise StorageError(
            f"{url}: {', '.join(wrong[:10])} of {len(wrong)} are not there as they were uploaded: "
            "run the same command again"
        )


def _is_stored(found: Any, file: Path) -> bool:
    """Whether the Hub's checksum of a file, large or as Git has it, is that of ours."""
    if found is None:
        return False
    data = file.read_bytes()
    if found.lfs is not None:
        return bool(found.lfs.sha256 == hashlib.sha256(data).hexdigest())
    blob = b"blob %d\0" % len(data) + data
    return bool(found.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest())


def card(manifest: Manifest, size: int, repository: str, folder: str | None) -> str:
    """The repository's README.md: what the cache is, and how to use it."""
    dataset, teacher = manifest.dataset, manifest.teacher
    url = f"hf://datasets/{repository}" + ("" if folder is None else f"/{folder}")
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

# A teacher's answers to {dataset.get("source", "images")}

A [Zarr](https://zarr.dev) cache of kdscale, format version {manifest.format_version}, `{manifest.id}`.

| what | |
| --- | --- |
| teacher | `{teacher.get("model")}`{known}, weights `{teacher["weights_sha256"][:12]}…` |
| data set | {dataset.get("source")}, split {dataset.get("split")}: {number_of(manifest.num_samples, "image")} of {number_of(manifest.num_classes, "class", "classes")}; the images are not in here |
| views | {manifest.num_views}, seed {manifest.views["seed"]} |
| encoding | {manifest.encoding}, {manifest.bytes_per_target} bytes an answer |
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
