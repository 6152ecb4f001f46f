"""Object stores that are busy, lose answers, refuse, or are not there."""

import itertools
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import synthetic

from kdscale.cache.lease import Leases
from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores import object_store
from kdscale.cache.stores.store import open_store
from kdscale.cache.verify import verify
from kdscale.errors import CacheNotFoundError, ConfigError, StorageError

BUSY = (503, b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>", {})


def refusal(code, status=403):
    return status, f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode(), {}


def test_requests_that_a_busy_server_refuses_are_tried_again(proxy, bucket):
    turns = itertools.count()
    proxy.instead = lambda method, path: BUSY if next(turns) % 3 else None  # two of three
    synthetic.build(f"{bucket}/c.zarr", synthetic.asked(num_views=1, shard_samples=10))
    assert verify(f"{bucket}/c.zarr").ok


def test_claim_whose_answer_was_lost_is_held_all_the_same(proxy, bucket):
    lost = []

    def lose_first(method, path):
        if method == "PUT" and "shard.0" in path and not lost:
            lost.append(path)
            return "lose"
        return None

    proxy.instead = lose_first
    with Leases(f"{bucket}/c.zarr") as ours, Leases(f"{bucket}/c.zarr") as theirs:
        assert ours.claim("shard")
        assert lost
        ours.check("shard")
        assert not theirs.claim("shard")


def test_objects_whose_answers_are_lost_are_written_again(proxy, bucket):
    lost = set()

    def lose_each_once(method, path):
        few = path.endswith(("/c/0/1/0", "logits/zarr.json"))
        if method == "PUT" and few and path not in lost:
            lost.add(path)
            return "lose"
        return None

    proxy.instead = lose_each_once
    synthetic.build(f"{bucket}/c.zarr", synthetic.asked(num_views=1))
    assert len(lost) == 3
    assert verify(f"{bucket}/c.zarr").ok


@pytest.mark.parametrize(
    "code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken"]
)
def test_refused_credentials_are_one_clear_message(proxy, bucket, code):
    proxy.instead = lambda method, path: refusal(code)
    for act in (read_manifest, synthetic.build, verify):
        with pytest.raises(StorageError) as caught:
            act(f"{bucket}/c.zarr")
        message = str(caught.value)
        assert "\n" not in message
        assert f"{code}: No." in message
        assert f"{bucket}/c.zarr" in message
        assert "credentials in the environment" in message


def test_refusal_is_no_damage(proxy, bucket):
    synthetic.build(f"{bucket}/c.zarr", synthetic.asked(num_views=1))
    proxy.instead = lambda method, path: refusal("AccessDenied") if "/logits/c" in path else None
    with pytest.raises(StorageError, match="AccessDenied"):
        verify(f"{bucket}/c.zarr")


def test_bucket_that_is_not_there_is_named(bucket, quick_to_give_up):
    for act in (read_manifest, synthetic.build):
        with pytest.raises(StorageError, match="NoSuchBucket") as caught:
            act("s3://not-mine/c.zarr")
        assert "s3://not-mine/c.zarr" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_server_that_is_not_there_is_one_clear_message(bucket, monkeypatch, quick_to_give_up):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="check the URL, the network") as caught:
        read_manifest(f"{bucket}/c.zarr")
    assert "\n" not in str(caught.value)


def test_no_cache_at_a_url_is_reported(bucket):
    with pytest.raises(CacheNotFoundError, match=f"no cache at {bucket}/c.zarr"):
        read_manifest(f"{bucket}/c.zarr")


def test_plain_http_is_spoken_only_where_the_endpoint_says_so(
    bucket, s3_server, monkeypatch, quick_to_give_up
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.replace("http://", "https://"))
    with pytest.raises(StorageError):
        read_manifest(f"{bucket}/c.zarr")


def test_missing_package_is_named(monkeypatch):
    object_store._connect.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"obstore.*pip install 'kdscale\[stores\]'"):
        open_store("s3://b/c.zarr")


@pytest.mark.parametrize("url", ["sftp://host/c.zarr", "memory://x", "hdfs://h/c.zarr"])
def test_url_of_another_scheme_is_refused_and_the_ones_that_work_are_named(url):
    with pytest.raises(ConfigError, match=r"use a folder, file://.* s3://.*gs://.*az://"):
        open_store(url)


@pytest.mark.parametrize("url", ["nonsense://x/y", "s3://", "gs:///c.zarr"])
def test_url_of_nothing_is_refused(url):
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_store(url)


def test_another_cache_at_the_url_is_not_touched(bucket):
    url = f"{bucket}/c.zarr"
    synthetic.build(url)
    store = open_store(url)
    before = {key: store.read(key) for key, _ in store.keys("")}
    other = synthetic.asked(encoding="float32")
    with pytest.raises(Exception, match="holds other targets"):
        synthetic.build(url, other)
    open_store(f"{bucket}/notes.zarr").write("notes.txt", b"mine")
    with pytest.raises(StorageError, match="is not a cache"):
        synthetic.build(f"{bucket}/notes.zarr", replace(other))
    assert {key: store.read(key) for key, _ in store.keys("")} == before


def test_objects_of_a_view_are_requested_concurrently(proxy, bucket):
    asked = synthetic.asked(num_views=1, num_samples=32)
    synthetic.build(f"{bucket}/c.zarr", asked)
    meeting = threading.Barrier(4, timeout=20)

    def meet(method, path):
        if method == "GET" and "/logits/c/" in path:
            meeting.wait()  # nobody goes on before three more have come

    proxy.instead = meet
    reader = CacheReader(f"{bucket}/c.zarr")
    found = reader.read_view(0)["logits"]
    proxy.instead = lambda method, path: None
    shards = [reader.read_shard(0, shard)["logits"] for shard in range(8)]
    np.testing.assert_array_equal(found, np.concatenate(shards))
    proxy.instead = meet
    assert verify(f"{bucket}/c.zarr").ok


def test_error_among_several_requests_stops_them(proxy, bucket):
    synthetic.build(f"{bucket}/c.zarr", synthetic.asked(num_views=1, num_samples=160))
    proxy.seen.clear()
    proxy.instead = lambda method, path: refusal("AccessDenied") if "/logits/c" in path else None
    with pytest.raises(StorageError, match="AccessDenied"):
        verify(f"{bucket}/c.zarr")
    assert sum("/logits/c" in path for _, path in proxy.seen) < 30
