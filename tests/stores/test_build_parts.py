"""Parts of a build: where each builder begins, what it takes over, and in how many requests."""

import os
import re
import time
import urllib.parse
from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import synthetic

from kdscale.building.cluster_estimate import requests_of_shard
from kdscale.building.part import WHOLE, Part, parse_part, part_of_environment
from kdscale.building.shards import ShardQueue
from kdscale.cache.layout import claim_name, parse_shard_name
from kdscale.cache.lease import INTERVAL_SECONDS, Leases
from kdscale.cache.process_identity import BUILDERS_HERE
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.object_store import ObjectStore
from kdscale.cache.verify import verify
from kdscale.cache.writer import ShardWriter, create_or_resume, finish
from kdscale.errors import ConfigError

# ------------------------------------------------------------------ which part


@pytest.mark.parametrize(("num_views", "num_shards", "count"), [(3, 7, 4), (1, 5, 8), (12, 1, 5)])
def test_parts_do_not_overlap_hold_everything_and_are_equally_large(num_views, num_shards, count):
    shards = [(view, shard) for view in range(num_views) for shard in range(num_shards)]
    parts = [Part(index, count).select(shards) for index in range(count)]
    assert sorted(one for part in parts for one in part) == shards
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_part_is_the_same_samples_in_all_views():
    shards = [(view, shard) for view in range(6) for shard in range(16)]
    parts = [Part(index, 4).select(shards) for index in range(4)]
    assert [sorted({shard for _, shard in part}) for part in parts] == [
        list(range(first, last)) for first, last in pairwise(range(0, 17, 4))
    ]


def test_processes_of_a_launch_divide_their_builders_part():
    shards = [(view, shard) for view in range(3) for shard in range(8)]
    own = [Part(2, 3).of_process(process, 2).select(shards) for process in range(2)]
    assert own[0] | own[1] == Part(2, 3).select(shards)
    assert not own[0] & own[1]


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, WHOLE),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4",
             "SLURM_ARRAY_TASK_MIN": "3"},
            Part(2, 4, "SLURM_ARRAY_TASK_ID"),
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_COUNT": "3",
             "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "4"},
            Part(2, 3, "SLURM_ARRAY_TASK_ID"),
        ),
        (
            {"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "8"},
            Part(0, 8, "JOB_COMPLETION_INDEX"),
        ),
    ],
)  # fmt: skip
def test_part_is_taken_from_the_array_of_slurm_or_kubernetes(environment, part):
    assert part_of_environment(environment) == part


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SLURM_ARRAY_TASK_ID": "5"}, "SLURM_ARRAY_TASK_COUNT is not set"),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3",
             "SLURM_ARRAY_TASK_MIN": "1"},
            "SLURM_ARRAY_TASK_ID is 7, wanted one of 3 tasks from 1 on in steps of 1",
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3",
             "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "2"},
            "in steps of 2",
        ),
        ({"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETIONS is not set"),
        ({"JOB_COMPLETION_INDEX": "8", "JOB_COMPLETIONS": "8"}, "less than JOB_COMPLETIONS (8)"),
        ({"JOB_COMPLETION_INDEX": "-1", "JOB_COMPLETIONS": "8"}, "JOB_COMPLETION_INDEX is '-1'"),
    ],
)  # fmt: skip
def test_index_that_names_no_part_is_refused(environment, named):
    with pytest.raises(ConfigError, match=re.escape(named)) as refused:
        part_of_environment(environment)
    assert "--part I/N" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", "1/9999999", ""]
)
def test_part_that_is_none_is_refused_in_one_line(kdscale, write_recipe, text):
    with pytest.raises(ConfigError, match="I/N is wanted"):
        parse_part(text)
    if text in ("5/4", ""):
        done = kdscale("cache", "build", write_recipe(), "--part", text)
        assert done.exit_code == 2
        assert done.stderr.count("\n") == 1


def test_part_of_the_environment_is_logged_and_builds_the_whole_cache_in_the_end(
    kdscale, write_recipe, tiny_teacher, monkeypatch, tmp_path
):
    recipe = write_recipe(teacher={"weights": str(tiny_teacher)})
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setenv("JOB_COMPLETIONS", "3")
    done = kdscale("cache", "build", recipe)
    assert done.exit_code == 0, done.stderr
    assert "begins with part 2/3, from JOB_COMPLETION_INDEX" in done.stderr
    assert kdscale("cache", "verify", "cache/tiny.zarr").exit_code == 0


# ------------------------------------------------------------------ how many requests


class Counting:
    """A store that notes its requests."""

    def __init__(self, store):
        self._store, self.asked = store, []

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if name not in ("read", "write", "create", "overwrite", "keys", "size", "remove"):
            return found

        def noted(key="", *args, **kwargs):
            self.asked.append((name, key))
            return found(key, *args, **kwargs)

        return noted


def shard_of(key):
    """The (view, shard) that a key of a cache concerns, if it does."""
    parts = key.split("/")
    if len(parts) > 3 and parts[1] == "c":
        return int(parts[2]), int(parts[3])
    return parse_shard_name(parts[-1].partition(".")[0].replace("-shard", "/shard"))


class SimulatedBuilder:
    """A builder without a teacher: takes a lease in one turn, writes and releases in the next."""

    def __init__(self, store, manifest, part, pace=1):
        self.store, self.pace, self.built = Counting(store), pace, []
        self.leases = Leases(self.store, interval_seconds=1000)
        self.writer = ShardWriter(self.store, manifest)
        self.queue = ShardQueue(self.writer, self.leases, synthetic.all_shards(manifest), part)
        self._claims, self._hand = self.queue.claim_each(), None

    def turn(self):
        if self._hand is not None:
            rows = synthetic.rows(self.writer.manifest, *self._hand)
            check = partial(self.leases.check, claim_name(*self._hand))
            self.writer.write(*self._hand, rows, 0.25, check)
            self.leases.release(claim_name(*self._hand))
            self.built.append(self._hand)
        self._hand = next(self._claims, None)
        if self._hand is None:
            self.queue.refresh()
            self._claims = self.queue.claim_each()

    def die(self):
        """Leave everything as a killed process does."""
        BUILDERS_HERE.discard(self.leases.builder)
        self.queue.missing = []


def run(builders):
    turn = 0
    while any(one.queue.missing for one in builders):
        turn += 1
        for one in builders:
            if one.queue.missing and turn % one.pace == 0:
                one.turn()
        assert turn < 1000


@pytest.fixture
def begin(store_in_memory):
    """Begins a cache of 4 views of 32 shards; returns the store and the manifest."""
    manifest = synthetic.asked(num_views=4, num_samples=128, shard_samples=4)
    created = create_or_resume(store_in_memory, manifest, synthetic.labels(manifest))
    return store_in_memory, created


def requests_of_others(builder):
    """Requests of a builder that concern shards of others, listings included."""
    counts = Counter()
    for verb, key in builder.store.asked:
        if verb == "keys":
            counts["listings"] += 1
        elif (shard := shard_of(key)) is not None and shard not in builder.built:
            counts["shards"] += 1
    return counts


def requests_of_own(builder):
    """Requests of a builder for the shards that it built; the lease of each was listed once."""
    concerned = [shard_of(key) for verb, key in builder.store.asked if verb != "keys"]
    return sum(shard in builder.built for shard in concerned) + len(builder.built)


def close(builders):
    for one in builders:
        one.leases.close()


def test_eight_builders_begin_with_their_parts_in_at_most_two_requests_for_a_shard_of_others(begin):
    store, manifest = begin
    builders = [SimulatedBuilder(store, manifest, Part(index, 8)) for index in range(8)]
    run(builders)
    finish(builders[3].store, manifest, {}, builders[3].leases)
    for index, one in enumerate(builders):
        assert set(one.built) == Part(index, 8).select(synthetic.all_shards(manifest))
        others = manifest.num_views * manifest.num_shards - len(one.built)
        assert sum(requests_of_others(one).values()) <= 2 * others
        finished = index == 3  # and read all records once more
        each = requests_of_shard(num_arrays=2) + finished
        assert requests_of_own(one) == each * len(one.built)
    close(builders)


def test_straggler_and_dead_builder_are_taken_over_and_no_shard_is_built_twice(begin):
    store, manifest = begin
    paces = {2: 7}
    builders = [
        SimulatedBuilder(store, manifest, Part(index, 8), paces.get(index, 1)) for index in range(8)
    ]
    for _ in range(3):
        builders[5].turn()
    builders[5].die()
    run(builders)
    built = Counter(one for builder in builders for one in builder.built)
    assert set(built) == set(synthetic.all_shards(manifest))
    assert set(built.values()) == {1}
    assert len(builders[2].built) < 16
    assert len(builders[5].built) == 2
    for one in builders[:2] + builders[3:5] + builders[6:]:
        others = manifest.num_views * manifest.num_shards - len(one.built)
        assert sum(requests_of_others(one).values()) <= 2 * others
    finish(store, manifest, {}, builders[0].leases)
    close(builders)


def test_builder_without_a_part_passes_over_what_others_built(begin):
    store, manifest = begin
    builders = [SimulatedBuilder(store, manifest, WHOLE) for _ in range(4)]
    run(builders)
    built = Counter(one for builder in builders for one in builder.built)
    assert set(built.values()) == {1}
    assert len(built) == manifest.num_views * manifest.num_shards
    for one in builders:
        assert sum(requests_of_others(one).values()) <= 4 * (128 - len(one.built))
    close(builders)


def test_lease_that_only_a_dead_heir_left_is_taken_over(begin):
    store, manifest = begin
    dead, heir = (SimulatedBuilder(store, manifest, WHOLE) for _ in range(2))
    assert dead.leases.claim("part")
    dead.die()
    assert heir.leases.claim("part")  # generation 1
    store.remove("claims/part.0")
    heir.die()
    third = Leases(store)
    assert third.available(["part", "other"]) == ["part", "other"]
    assert third.claim("part")
    assert isinstance(store, ObjectStore)
    third.close()
    close([dead, heir])


# ------------------------------------------------------------------ processes, on an S3 server

NUM_VIEWS = 64  # of one object each


class Requests:
    """What one builder requested of the server, so far."""

    def __init__(self, proxy):
        paths = [(verb, urllib.parse.unquote(path)) for verb, path in list(proxy.seen)]
        keys = [(verb, path.partition("c.zarr/")[2].partition("?")[0]) for verb, path in paths]
        puts = {key for verb, key in keys if verb == "PUT"}
        self.built = {shard_of(key) for key in puts if key.startswith("commits/c/")}
        about_others = [
            (verb, key) for verb, key in keys if shard_of(key) and shard_of(key) not in self.built
        ]
        looks = [key for verb, key in about_others if verb == "GET" and key.startswith("claims/")]
        listings = sum("list-type=2" in path for _, path in paths)
        self.of_the_clock = len(looks) + listings
        """Listings, and reads of leases: who waits repeats them, once a pause or heartbeat."""
        self.of_shards = len(about_others) - len(looks)
        """Requests for the shards of others, however long the build takes."""


def wait_until(condition, seconds=600):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.launch
def test_eight_processes_with_parts_build_one_cache_and_one_that_is_killed_is_taken_over(
    kdscale, commands, write_recipe, save_random_model, bucket, s3_server, eight_proxies, tmp_path
):
    weights = save_random_model("counted", tmp_path / "counted.safetensors")
    options = {"log": str(tmp_path / "batches.txt"), "seconds": 0.1}
    teacher = {"model": "tiny_models:counted", "options": options, "weights": str(weights)}
    recipe = write_recipe(teacher={**teacher, "batch_size": 32}, views={"count": NUM_VIEWS})
    alone = kdscale("cache", "build", recipe, "--cache", f"{bucket}/alone.zarr")
    assert alone.exit_code == 0, alone.stderr
    url = f"{bucket}/c.zarr"
    halt = tmp_path / "batches.halt"
    halt.write_text("0")  # until all eight have begun
    store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    servers = [commands, *(type(commands)() for _ in range(7))]
    try:
        for index, (server, proxy) in enumerate(zip(servers, eight_proxies, strict=True)):
            server.start(
                "cache", "build", recipe, "--cache", url, "--part", f"{index + 1}/8",
                cwd=tmp_path, output=f"builder-{index}.txt",
                **(store | {"AWS_ENDPOINT_URL": proxy.address}),
            )  # fmt: skip
        wait_until(lambda: all(proxy.seen for proxy in eight_proxies))
        began = time.monotonic()
        halt.unlink()
        wait_until(lambda: len(Requests(eight_proxies[3]).built) >= 2)
        servers[3].kill()
        statuses = [server.wait() for server in servers]
        seconds = time.monotonic() - began
    finally:
        for server in servers[1:]:
            server.close()
    logs = [(tmp_path / f"builder-{index}.txt").read_text() for index in range(8)]
    assert statuses == [0, 0, 0, -9, 0, 0, 0, 0], "\n".join(log[-400:] for log in logs)
    assert verify(url).ok
    ours, theirs = CacheReader(url), CacheReader(f"{bucket}/alone.zarr")
    for view in range(NUM_VIEWS):
        for name, values in theirs.read_view(view).items():
            np.testing.assert_array_equal(ours.read_view(view)[name], values)
    found = [Requests(proxy) for proxy in eight_proxies]
    built = Counter(shard for one in found for shard in one.built)
    assert len(built) == NUM_VIEWS
    assert built.total() == NUM_VIEWS, "a shard was built twice"
    assert 2 <= len(found[3].built) < NUM_VIEWS // 8, "it was to be killed in its part"
    for one in found:
        assert one.of_shards <= 2 * (NUM_VIEWS - len(one.built)), vars(one)
        assert one.of_the_clock <= (2 + seconds / INTERVAL_SECONDS) * 3 * len(found), vars(one)
    assert any("taken over from one that stopped" in log for log in logs)
