"""Targets that do not fit in memory: the same answers, window by window, in the memory given."""

import shutil
import threading
from math import lcm
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdscale.cache.manifest import read_manifest
from kdscale.cache.reader import CacheReader
from kdscale.data.loader import Batch, BatchLoader
from kdscale.data.views.mix_pairs import MixPairs
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import CacheCorruptError, ConfigError, ViewMismatchError
from kdscale.target_sources.cached import CachedTargets
from kdscale.target_sources.clean_image import CleanImageTargets, check_partners
from kdscale.target_sources.ensemble import Ensemble
from kdscale.target_sources.memory_plan import plan_memory
from kdscale.target_sources.prefetch import row_bytes
from kdscale.target_sources.read_stats import memory_text
from tests.cache import synthetic

SAMPLES, SHARD, VIEWS = 154, 8, 2  # 20 shards, the last one shorter
VIEW = {"generator": 1, "seed": 3, "operations": [{"name": "random_horizontal_flip", "p": 0.5}]}


def build(path, encoding="float16", *, views=VIEW):
    sizes = {"num_samples": SAMPLES, "shard_samples": SHARD, "num_views": VIEWS}
    synthetic.build(path, synthetic.encoded(encoding, views=views, **sizes))
    return path


@pytest.fixture(scope="module")
def largest(tmp_path_factory):
    """Of the largest logits and their tails, which are several arrays."""
    return build(tmp_path_factory.mktemp("cache") / "topk.zarr", "topk")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Not to be damaged."""
    return build(tmp_path_factory.mktemp("cache") / "made-up.zarr")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Of images as they are."""
    views = {"generator": 1, "seed": 0, "operations": []}
    return build(tmp_path_factory.mktemp("cache") / "plain.zarr", views=views)


def memory(path, units, *, unit=SHARD):
    """Enough for windows of so many units."""
    return row_bytes(CacheReader(path).manifest) * (2 * units * unit + 3 * SHARD)


@pytest.fixture
def opened(request):
    """Opens caches and closes them again."""

    def make(path, *, memory_bytes=None, together=None, epochs=None, **options):
        manifest = read_manifest(path)
        views = options.get("num_views") or manifest.num_views
        plan = plan_memory(
            memory_bytes, [manifest], num_views=views, together=together, epochs=epochs
        )
        cached = CachedTargets.open(path, **{"memory": plan, **options})
        request.addfinalizer(cached.close)
        return cached

    return make


NO_IMAGES = SimpleNamespace(device=torch.device("cpu"))


def loader(cached, *, batch=12, **options):
    settings = {"seed": 0, "global_batch_size": batch, "windows": cached.windows} | options
    return BatchLoader(NO_IMAGES, torch.arange(SAMPLES), Pipeline(()), cached.schedule, **settings)


def values(targets):
    return [value for value in vars_of(targets) if isinstance(value, torch.Tensor)]


def vars_of(targets):
    return [getattr(targets, name) for name in targets.__slots__]


def read_all(cached, found, steps):
    """The answers of steps, in their order."""
    for step in steps:
        epoch, index = step // found.steps_per_epoch, found.index(step)
        cached.start_epoch(epoch)
        yield cached.read(cached.schedule.view(epoch, index), index)


# --------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize(
    ("stored", "shift_every"), [("cache", None), ("cache", SHARD), ("cache", 5), ("largest", 5)]
)
def test_windows_give_the_answers_of_the_whole_view(stored, shift_every, opened, request):
    encoded = request.getfixturevalue(stored)
    whole = opened(encoded, shift_every=shift_every)
    parts = opened(encoded, shift_every=shift_every, memory_bytes=memory(encoded, 4))
    assert whole.windows is None
    assert len(parts.windows) == 5
    found = loader(parts)
    steps = range(2 * found.steps_per_epoch)
    for ours, theirs in zip(
        read_all(parts, found, steps), read_all(whole, found, steps), strict=True
    ):
        for one, other in zip(values(ours), values(theirs), strict=True):
            assert one.equal(other)


def test_resumed_reading_begins_with_the_window_that_is_needed(cache, opened):
    limit = memory(cache, 4)
    found = loader(opened(cache, memory_bytes=limit))
    for start in (0, 7, 11, 20):
        steps = range(start, start + 3)
        whole, parts = opened(cache), opened(cache, memory_bytes=limit, epochs=2)
        answers = zip(read_all(parts, found, steps), read_all(whole, found, steps), strict=True)
        for ours, theirs in answers:
            assert ours.logits_BC.equal(theirs.logits_BC)
        parts.close()
        assert parts.reading().read_bytes < whole.reading().read_bytes


@pytest.mark.parametrize("num_processes", [2, 3])
def test_each_process_gets_its_share(cache, opened, num_processes):
    limit = memory(cache, 4)
    whole = opened(cache)
    for process in range(num_processes):
        parts = opened(cache, memory_bytes=limit)
        found = loader(parts, process=(process, num_processes))
        steps = range(2 * found.steps_per_epoch)
        answers = zip(read_all(parts, found, steps), read_all(whole, found, steps), strict=True)
        for ours, theirs in answers:
            assert ours.logits_BC.equal(theirs.logits_BC)


def test_pixels_are_checked_where_they_lie(cache, opened):
    cached = opened(cache, memory_bytes=memory(cache, 4))
    found = loader(cached)
    pixels = torch.zeros(12, 1, 2, 2, dtype=torch.uint8)
    cached.start_epoch(0)
    index = found.index(5)
    with pytest.raises(ViewMismatchError, match=rf"12 of 12 samples \(first: {int(index[0])}\)"):
        cached.read(cached.schedule.view(0, index), index, pixels)


def test_damaged_shard_stops_the_reading_that_needs_it(cache, opened, tmp_path):
    cache = Path(shutil.copytree(cache, tmp_path / "copy.zarr"))
    cached = opened(cache, memory_bytes=memory(cache, 4))
    found = loader(cached)
    (cache / "logits/c" / str(cached.schedule.view(0, torch.zeros(1))) / "13/0").write_bytes(b"")
    with pytest.raises(CacheCorruptError, match=r"view-0000\d/shard-00013 missing or damaged"):
        list(read_all(cached, found, range(found.steps_per_epoch)))


@pytest.mark.parametrize("case", ["not begun", "any order", "another view"])
def test_other_orders_are_refused(cache, opened, case):
    cached = opened(cache, memory_bytes=memory(cache, 4))
    if case != "not begun":
        cached.start_epoch(0)
    index = torch.arange(SAMPLES) if case == "any order" else loader(cached).index(0)
    view = cached.schedule.view(int(case == "another view"), index)
    with pytest.raises(ConfigError, match="take samples in the order of `windows`"):
        cached.read(view, index)


# --------------------------------------------------------------------------- memory


def test_memory_decides_how_much_is_held(cache, opened):
    row = row_bytes(CacheReader(cache).manifest)
    in_hand, epoch = 3 * SHARD * row, SAMPLES * row

    def held(limit):
        reading = opened(cache, memory_bytes=limit).reading()
        return reading.num_windows, reading.buffer_bytes

    assert held(None) == held(2 * epoch + in_hand) == (1, 2 * epoch)
    assert held(2 * epoch + in_hand - 1) == held(epoch + in_hand) == (1, epoch)
    windows, size = held(epoch + in_hand - 1)
    assert windows == 3  # of which two are held
    assert size < epoch
    assert held(2 * SHARD * row + in_hand) == (20, 2 * SHARD * row)
    with pytest.raises(ConfigError, match="are 560 bytes: set that at least"):
        held(2 * SHARD * row + in_hand - 1)
    one = opened(cache, num_views=1, memory_bytes=epoch + in_hand).reading()
    assert (one.num_windows, one.buffer_bytes) == (1, epoch)


def test_next_window_is_read_by_another_thread(cache, opened, monkeypatch):
    cached, readers = opened(cache, memory_bytes=memory(cache, 4)), []
    read = cached.reader.read_shard

    def noted(*where):
        readers.append(threading.current_thread())
        return read(*where)

    monkeypatch.setattr(cached.reader, "read_shard", noted)
    found = loader(cached)
    list(read_all(cached, found, range(2 * found.steps_per_epoch)))
    cached.close()
    ours = [reader is threading.current_thread() for reader in readers]
    assert ours == sorted(ours, reverse=True)  # the first window alone, which nothing precedes
    assert 0 < sum(ours) <= 4


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("units", [None, 4])
def test_every_object_is_read_once_an_epoch_and_none_for_an_epoch_too_many(
    cache, opened, epochs, units
):
    limit = None if units is None else memory(cache, units)
    cached = opened(cache, memory_bytes=limit, epochs=epochs)
    found = loader(cached)
    for _ in read_all(cached, found, range(epochs * found.steps_per_epoch)):
        pass
    cached.close()
    stored = dict.fromkeys(range(VIEWS), 0)
    for name in ("logits", "digests"):
        for view in stored:
            files = (cache / name / "c" / str(view)).rglob("*")
            stored[view] += sum(file.stat().st_size for file in files if file.is_file())
    views = [cached.schedule.view(epoch, torch.zeros(1)) for epoch in range(epochs)]
    reading = cached.reading()
    assert reading.read_bytes == reading.needed_bytes == sum(stored[view] for view in views)
    assert reading.amplification == 1


def test_amplification_counts_views_and_samples_that_are_not_used(cache, opened):
    shifted = opened(cache, shift_every=4, epochs=1)
    shifted.start_epoch(0)
    assert 1 < shifted.reading().amplification < VIEWS
    assert opened(cache).reading(0.5).amplification == 1  # nothing was read
    half = opened(cache, epochs=1)
    half.start_epoch(0)
    assert half.reading(0.5).amplification == pytest.approx(2)


# --------------------------------------------------------------------------- partners


def mixed_batch(pipeline, view, index):
    partner = pipeline.partner(view, index)
    mix = SimpleNamespace(index_B=partner, weight_B=torch.full((len(index),), 0.5))
    plan = pipeline.plan(view, index)[0]
    return Batch(torch.zeros(len(index), 1, 2, 2), index, plan.samples, mix, plan.partners)


@pytest.mark.parametrize("within", [SHARD // 2, SHARD, 3 * SHARD, 10])
def test_partners_in_fixed_mode_are_in_memory_together(plain, opened, within):
    pipeline = Pipeline.parse(["mixup"], pairing=MixPairs(SAMPLES, 0.0, within))
    limit = memory(plain, 1, unit=lcm(SHARD, within))
    parts = opened(plain, num_views=1, memory_bytes=limit, together=within)
    whole = opened(plain, num_views=1)
    check_partners(parts.manifest, pipeline)
    assert len(parts.windows) > 2
    sources = [CleanImageTargets(one, None, parts.schedule) for one in (parts, whole)]
    for source in sources:
        source.clean.check_is_due = lambda _: False
    found = BatchLoader(
        NO_IMAGES, torch.arange(SAMPLES), pipeline, parts.schedule,
        seed=0, global_batch_size=2, windows=parts.windows,
    )  # fmt: skip
    for step in range(2 * found.steps_per_epoch):
        answers = []
        for source in sources:
            source.start_epoch(step // found.steps_per_epoch)
            answers.append(source.targets(mixed_batch(pipeline, 0, found.index(step))).logits_BC)
        assert answers[0].equal(answers[1])


def test_partners_anywhere_are_refused_in_fixed_mode(cache):
    manifest = CacheReader(cache).manifest
    check_partners(manifest, Pipeline(()))
    with pytest.raises(ConfigError, match=f"or views.pair_within = {SHARD}"):
        check_partners(manifest, Pipeline.parse(["mixup"], pairing=MixPairs(SAMPLES)))


def test_views_say_who_belongs_together(tmp_path, opened):
    path = tmp_path / "cache.zarr"
    pipeline = Pipeline.parse(["mixup"], 3, pairing=MixPairs(SAMPLES, 0.0, 20))
    build(path, views=pipeline.describe())
    cached = opened(path, memory_bytes=memory(path, 1, unit=40))
    assert cached.windows.unit_samples == 40  # the least that is whole shards and whole blocks
    with pytest.raises(ConfigError, match=rf"two windows of 40 .* or views.pair_within = {SHARD}"):
        opened(path, memory_bytes=memory(path, 1))


def test_bytes_are_printed_rounded_up():
    shown = {1023: "1023 bytes", 1025: "1.1 KiB", 1 << 30: "1 GiB", (3 << 29) + 1: "1.6 GiB"}
    assert {number: memory_text(number) for number in shown} == shown


def test_caches_that_teach_together_share_memory_and_windows(cache, opened, tmp_path):
    sizes = {"num_samples": SAMPLES, "shard_samples": 12, "num_views": VIEWS}
    other = tmp_path / "other.zarr"
    synthetic.build(other, synthetic.encoded("float32", views=VIEW, **sizes))
    paths = [cache, other]
    manifests = [CacheReader(path).manifest for path in paths]
    limit = 150 * sum(row_bytes(manifest) for manifest in manifests)
    fit = plan_memory(limit, manifests, num_views=VIEWS)
    assert fit.windows.unit_samples == 24
    parts = [opened(path, memory=fit) for path in paths]
    whole = [opened(path) for path in paths]
    assert sum(one.reading().buffer_bytes for one in parts) < limit
    both, all_of_both = (Ensemble(some, [0.5, 0.5], "logits", 1.0) for some in (parts, whole))
    assert both.windows == fit.windows
    found = loader(both, batch=4)
    for step in range(2 * found.steps_per_epoch):
        epoch, index = step // found.steps_per_epoch, found.index(step)
        batch = Batch(torch.zeros(0), index, found.plan(step).samples)
        answers = []
        for source in (both, all_of_both):
            source.start_epoch(epoch)
            for member in source.members:
                member.check_is_due = lambda _: False
            answers.append(source.targets(batch).logits_BC)
        assert answers[0].equal(answers[1])


def test_memory_for_less_than_large_objects_says_to_pull_them():
    sizes = {"num_samples": SAMPLES, "shard_samples": SAMPLES, "num_views": VIEWS}
    manifest = synthetic.encoded("float16", views=VIEW, chunk_samples=SHARD, **sizes)
    with pytest.raises(ConfigError, match="kdscale cache pull"):
        plan_memory(100, [manifest], num_views=VIEWS)
