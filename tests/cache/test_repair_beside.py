"""Repairing a cache while a builder works on it: what it commits is never taken out."""

from threading import Thread

import pytest
import synthetic

from kdscale.cache import repair
from kdscale.cache.layout import claim_name
from kdscale.cache.lease import Leases
from kdscale.cache.manifest import read_manifest
from kdscale.cache.repair import discard_bad_shards
from kdscale.cache.verify import check_shards, verify
from kdscale.cache.writer import ShardWriter

BAD = "view-00000/shard-00000"


@pytest.fixture
def damaged(cache):
    """A finished cache of which one shard is damaged, and its manifest."""
    chunk = cache / "logits/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert verify(cache).corrupt_shards == (BAD,)
    return cache, read_manifest(cache)


def build_again(cache, manifest):
    writer = ShardWriter(cache, manifest)
    writer.write(0, 0, synthetic.rows(manifest, 0, 0), 0.0)
    return writer


def test_shard_that_was_committed_since_it_was_judged_stays(damaged, monkeypatch):
    cache, manifest = damaged

    def judge_slowly(store, judged):
        found = check_shards(store, judged)
        build_again(cache, manifest)
        return found

    monkeypatch.setattr(repair, "check_shards", judge_slowly)
    assert discard_bad_shards(cache, synthetic.labels(manifest)).corrupt_shards == (BAD,)
    assert ShardWriter(cache, manifest).records.is_committed(0, 0)
    assert not verify(cache).missing_shards


def test_shard_that_a_builder_works_on_is_waited_for(damaged):
    cache, manifest = damaged
    with Leases(cache) as builder:
        assert builder.claim(claim_name(0, 0))
        taking_out = Thread(target=discard_bad_shards, args=(cache, synthetic.labels(manifest)))
        taking_out.start()
        taking_out.join(0.5)
        assert taking_out.is_alive()
        writer = build_again(cache, manifest)
        builder.release(claim_name(0, 0))
        taking_out.join(30)
        assert not taking_out.is_alive()
    assert writer.records.is_committed(0, 0)


def test_shard_that_nobody_works_on_is_taken_out(damaged):
    cache, manifest = damaged
    discard_bad_shards(cache, synthetic.labels(manifest))
    assert not ShardWriter(cache, manifest).records.is_committed(0, 0)
    assert ShardWriter(cache, manifest).records.is_committed(0, 1)
    assert not (cache / "claims").exists()
