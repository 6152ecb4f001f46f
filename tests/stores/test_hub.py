"""Caches in repositories of the Hub, by its own client and a server of the tests."""

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from kdscale.cache.hub_copy import pull_from_hub, push_to_hub
from kdscale.cache.manifest import read_manifest
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
from kdscale.hub import HubRepository

NAME = "me/answers"


@pytest.fixture
def cache(tmp_path):
    synthetic.build(tmp_path / "tiny.zarr")
    return tmp_path / "tiny.zarr"


@pytest.mark.parametrize(
    "url", ["hf://datasets/me/answers", "hf://datasets/me/answers/of/r56.zarr"]
)
def test_pushed_cache_has_a_card_and_comes_back(tmp_path, hub, cache, url):
    assert push_to_hub(cache, url) == {"copied": 2, "kept": 0}
    repository = hub.repository(NAME, "dataset")
    assert repository.private
    card = repository.files["README.md"].decode()
    assert card.startswith("---\ntags:\n- knowledge-distillation\n")
    for stated in ("`reference`", "made-up", "| kl_t1 | 1e-06 |", "float16, 10 bytes a sample",
                   f"kdscale cache pull {url}\n", "## Licence\n\nNot stated"):  # fmt: skip
        assert stated in card
    pull_from_hub(url, tmp_path / "back.zarr")
    assert verify(tmp_path / "back.zarr").ok
    ours, theirs = CacheReader(cache), CacheReader(tmp_path / "back.zarr")
    for view in range(2):
        for name, values in ours.read_view(view).items():
            np.testing.assert_array_equal(values, theirs.read_view(view)[name], strict=True)


def test_no_path_of_this_machine_is_uploaded(tmp_path, hub):
    begun = synthetic.asked()
    source, model = "/home/me/photos", "transformers//home/me/vit"
    paths = replace(
        begun, dataset={**begun.dataset, "source": source, "class_names": "/home/me/names.txt"},
        teacher={**begun.teacher, "model": model},
    )  # fmt: skip
    synthetic.build(tmp_path / "tiny.zarr", paths)
    push_to_hub(tmp_path / "tiny.zarr", "hf://datasets/me/answers")
    files = hub.files(NAME, "dataset")
    for name in ("README.md", "zarr.json"):
        text = files[name].decode()
        assert "home" not in text
        assert "/photos" in text
    assert read_manifest(tmp_path / "tiny.zarr").dataset["source"] == source
    pull_from_hub("hf://datasets/me/answers", tmp_path / "back.zarr")
    assert read_manifest(tmp_path / "back.zarr").id == begun.id


def test_card_that_its_owner_wrote_stays(hub, cache):
    url = "hf://datasets/me/answers/r56.zarr"
    push_to_hub(cache, url)
    files = hub.files(NAME, "dataset")
    files["README.md"] = b"mine"
    push_to_hub(cache, url)
    assert files["README.md"] == b"mine"


def test_another_cache_in_the_repository_is_not_touched(tmp_path, hub, cache):
    url = "hf://datasets/me/answers/r56.zarr"
    synthetic.build(tmp_path / "other.zarr", synthetic.asked(encoding="float32"))
    push_to_hub(tmp_path / "other.zarr", url)
    before = dict(hub.files(NAME, "dataset"))
    with pytest.raises(CacheMismatchError, match="holds another cache"):
        push_to_hub(cache, url)
    assert hub.files(NAME, "dataset") == before


@pytest.mark.parametrize("key", ["logits/zarr.json", "logits/c/0/0/0"])
def test_file_that_arrives_damaged_is_named(hub, cache, key):
    hub.on_commit = lambda repository: repository.files.update({key: b"damaged"})
    with pytest.raises(StorageError, match=key):
        push_to_hub(cache, "hf://datasets/me/answers")


def test_repository_without_a_cache_is_reported(tmp_path, hub, cache):
    push_to_hub(cache, "hf://datasets/me/answers/r56.zarr")
    with pytest.raises(CacheNotFoundError, match=r"has no zarr\.json there"):
        pull_from_hub("hf://datasets/me/answers/other.zarr", tmp_path / "back.zarr")


def test_unknown_repository_is_one_line(tmp_path, hub):
    with pytest.raises(StorageError, match="hf://datasets/me/nothing is not there") as caught:
        pull_from_hub("hf://datasets/me/nothing", tmp_path / "back.zarr")
    assert "\n" not in str(caught.value)


def test_push_without_a_token_is_one_line(hub, cache, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StorageError, match="token") as caught:
        push_to_hub(cache, "hf://datasets/me/answers")
    assert "\n" not in str(caught.value)


def test_repository_with_a_name_that_leads_out_is_not_downloaded(tmp_path, hub, cache):
    push_to_hub(cache, "hf://datasets/me/answers")
    hub.requests.clear()
    for name in ("../../x", "/etc/x", "a//b", "a/../../b", "..\\x", "a/./b", "n\0"):
        hub.repository(NAME, "dataset").listed = [name]
        with pytest.raises(UnsafePathError, match="not the key of an object of hf://"):
            pull_from_hub("hf://datasets/me/answers", tmp_path / "back.zarr")
    assert hub.downloads() == []
    assert not (tmp_path / "back.zarr").exists()


@pytest.mark.slow  # the Hub's client tries again for 20 s
def test_hub_that_is_not_there_is_one_message(cache, tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for act in (
        lambda: push_to_hub(cache, "hf://datasets/me/answers"),
        lambda: pull_from_hub("hf://datasets/me/answers", tmp_path / "back.zarr"),
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
        HubRepository.parse(url, "dataset")


def test_repository_is_neither_built_in_nor_read_from():
    with pytest.raises(ConfigError, match="kdscale cache pull"):
        open_store("hf://datasets/me/answers")
