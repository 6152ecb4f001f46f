"""Caches in repositories of the Hub: its client is a made-up one, that keeps files in a folder."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
from huggingface_hub.errors import EntryNotFoundError

from kdscale.cache.hub import parse, pull_from_hub, push_to_hub
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.store import open_store
from kdscale.cache.verify import verify
from kdscale.errors import (
    CacheMismatchError,
    CacheNotFoundError,
    ConfigError,
    StorageError,
    UnsafePathError,
)


class Hub:
    """What of `HfApi` is used."""

    def __init__(self, root):
        self.root, self.created, self.commits, self.downloads = root, [], 0, 0
        self.more = []  # names of files that only the listing has

    def create_repo(self, repository, *, repo_type, private, exist_ok):
        self.created.append((repository, repo_type, private, exist_ok))

    def file_exists(self, repository, path, *, repo_type):
        return (self.root / path).is_file()

    def hf_hub_download(self, repository, path, *, repo_type, local_dir):
        if not (self.root / path).is_file():
            raise EntryNotFoundError(path)
        (local_dir / path).parent.mkdir(parents=True)
        shutil.copyfile(self.root / path, local_dir / path)

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, repo_type):
        self.root.mkdir(exist_ok=True)
        shutil.copyfile(path_or_fileobj, self.root / path_in_repo)

    def upload_folder(self, *, repo_id, folder_path, path_in_repo, repo_type, commit_message):
        shutil.copytree(folder_path, self.root / (path_in_repo or ""), dirs_exist_ok=True)
        self.commits += 1

    def dataset_info(self, repository):
        found = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
        files = [SimpleNamespace(rfilename=name) for name in (*found, *self.more)]
        return SimpleNamespace(siblings=files, sha="0" * 40)

    def snapshot_download(self, repository, *, repo_type, local_dir, revision, allow_patterns):
        self.downloads += 1
        part = "" if allow_patterns is None else allow_patterns.removesuffix("/*")
        if (self.root / part).is_dir():
            shutil.copytree(self.root / part, Path(local_dir) / part, dirs_exist_ok=True)

    def get_paths_info(self, repository, paths, *, repo_type):
        for path in paths:
            data = (self.root / path).read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            large = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest())
            binary = "/c/" in path
            yield SimpleNamespace(path=path, blob_id=blob, lfs=large if binary else None)


@pytest.fixture
def hub(tmp_path):
    return Hub(tmp_path / "hub")


@pytest.fixture
def cache(tmp_path):
    synthetic.build(tmp_path / "tiny.zarr")
    return tmp_path / "tiny.zarr"


@pytest.mark.parametrize(
    "url", ["hf://datasets/me/answers", "hf://datasets/me/answers/of/r56.zarr"]
)
def test_pushed_cache_has_a_card_and_comes_back(tmp_path, hub, cache, url):
    assert push_to_hub(cache, url, hub) == {"copied": 2, "kept": 0}
    assert hub.created == [("me/answers", "dataset", True, True)]
    card = (hub.root / "README.md").read_text()
    assert card.startswith("---\ntags:\n- knowledge-distillation\n")
    for said in ("`reference`", "made-up", "| kl_t1 | 1e-06 |", "float16, 10 bytes an answer",
                 f"kdscale cache pull {url}\n", "## Licence\n\nNot stated"):  # fmt: skip
        assert said in card
    pull_from_hub(url, tmp_path / "back.zarr", hub)
    assert verify(tmp_path / "back.zarr").ok
    ours, theirs = CacheReader(cache), CacheReader(tmp_path / "back.zarr")
    for view in range(2):
        for name, values in ours.read_view(view).items():
            np.testing.assert_array_equal(values, theirs.read_view(view)[name], strict=True)


@pytest.mark.parametrize("url", ["hf://datasets/me/answers", "hf://datasets/me/answers/r56.zarr"])
def test_card_that_its_owner_wrote_stays(hub, cache, url):
    push_to_hub(cache, url, hub)
    (hub.root / "README.md").write_text("mine")
    push_to_hub(cache, url, hub)
    assert (hub.root / "README.md").read_text() == "mine"


def test_another_cache_in_the_repository_is_not_touched(tmp_path, hub, cache):
    url = "hf://datasets/me/answers/r56.zarr"
    synthetic.build(tmp_path / "other.zarr", synthetic.asked(encoding="float32"))
    push_to_hub(tmp_path / "other.zarr", url, hub)
    with pytest.raises(CacheMismatchError, match="holds another cache"):
        push_to_hub(cache, url, hub)
    assert hub.commits == 1


@pytest.mark.parametrize("key", ["logits/zarr.json", "logits/c/0/0/0"])
def test_file_that_arrives_damaged_is_named(hub, cache, monkeypatch, key):
    upload = Hub.upload_folder

    def damage(self, **how):
        upload(self, **how)
        (self.root / key).write_bytes(b"damaged")

    monkeypatch.setattr(Hub, "upload_folder", damage)
    with pytest.raises(StorageError, match=key):
        push_to_hub(cache, "hf://datasets/me/answers", hub)


def test_repository_without_a_cache_is_reported(tmp_path, hub):
    with pytest.raises(CacheNotFoundError, match=r"has no zarr\.json there"):
        pull_from_hub("hf://datasets/me/answers", tmp_path / "back.zarr", hub)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a//b", "a/../../b", "..\\x", "a/./b", "n\0"]
)
def test_repository_with_a_name_that_leads_out_is_not_downloaded(tmp_path, hub, cache, name):
    push_to_hub(cache, "hf://datasets/me/answers", hub)
    hub.more = [name]
    with pytest.raises(UnsafePathError, match="not the key of an object of hf://"):
        pull_from_hub("hf://datasets/me/answers", tmp_path / "back.zarr", hub)
    assert hub.downloads == 0
    assert not (tmp_path / "back.zarr").exists()


@pytest.mark.slow  # the Hub's client tries again for 20 s
def test_hub_that_is_not_there_is_one_message(cache, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    api = HfApi(endpoint="http://127.0.0.1:9", token=False)
    for act in (
        lambda: push_to_hub(cache, "hf://datasets/me/answers", api),
        lambda: pull_from_hub("hf://datasets/me/answers", tmp_path / "back.zarr", api),
    ):
        with pytest.raises(
            StorageError, match="check the name, the network and the token"
        ) as caught:
            act()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["hf://me/answers", "hf://datasets/me", "hf://models/me/answers",
     "hf://datasets/me/answers/../../x", "hf://datasets/../x", "hf://datasets/me/answers/a/.."],
)  # fmt: skip
def test_url_of_no_data_set_repository_is_refused(url):
    with pytest.raises(ConfigError, match="hf://datasets/USER/NAME"):
        parse(url)


def test_repository_is_neither_built_in_nor_read_from():
    with pytest.raises(ConfigError, match="kdscale cache pull"):
        open_store("hf://datasets/me/answers")
