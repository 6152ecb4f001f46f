"""Claims: one builder a part, dead builders replaced, and no clock believed."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import synthetic

from kdscale.cache import lease as module
from kdscale.cache.lease import Leases
from kdscale.cache.lease_files import is_lease
from kdscale.cache.stores import local as folder_module
from kdscale.cache.stores.local import LocalFolder
from kdscale.cache.wait import living_builder
from kdscale.cache.writer import ShardWriter, create_or_resume
from kdscale.errors import ClaimLostError, StorageError


@pytest.fixture
def builder(tmp_path):
    """Makes builders that count rarely, and closes them."""
    made = []

    def make(**settings):
        made.append(Leases(tmp_path, **{"interval_seconds": 1000, **settings}))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not (tmp_path / "claims").exists()


@pytest.fixture
def clock(monkeypatch):
    """The observer's monotonic clock, moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def elsewhere(folder, name="part", generation=0, count=b"7"):
    """What a builder on another machine leaves when it dies."""
    (folder / "claims").mkdir(exist_ok=True)
    claim = {"builder": "f" * 16, "host": "node-b", "pid": 1, "machine": "other", "started": "5"}
    (folder / f"claims/{name}.{generation}").write_text(json.dumps(claim))
    (folder / f"claims/{'f' * 16}.builder").write_bytes(count)


def leftovers(folder):
    for file in (folder / "claims").glob("*"):
        file.unlink()


# ------------------------------------------------------------------ one holder


def test_claim_is_one_builders_until_it_is_released(builder):
    one, other = builder(), builder()
    assert one.claim("part")
    assert not other.claim("part")
    assert not one.claim("part")
    assert other.claim("another part")
    one.release("part")
    assert other.claim("part")
    other.check("part")
    with pytest.raises(ClaimLostError):
        one.check("part")


def test_closing_releases_everything_and_the_last_builder_removes_the_folder(builder, tmp_path):
    one, other = builder(), builder()
    assert one.claim("part")
    assert other.claim("another part")
    one.close()
    assert other.claim("part")
    assert len(list((tmp_path / "claims").iterdir())) == 3  # two claims, one builder
    other.close()
    assert not (tmp_path / "claims").exists()


def test_claim_names_host_and_process(builder, tmp_path):
    builder().claim("part")
    said = json.loads((tmp_path / "claims/part.0").read_text())
    assert said["pid"] == os.getpid()
    assert set(said) == {"builder", "host", "pid", "machine", "started"}
    assert all(is_lease(f"claims/{file.name}") for file in (tmp_path / "claims").iterdir())


def test_counter_moves_while_a_builder_lives(builder, tmp_path):
    builder(interval_seconds=0.01).claim("part")
    (counter,) = (tmp_path / "claims").glob("*.builder")
    before = counter.read_bytes()
    ends = time.monotonic() + 20
    while counter.read_bytes() == before and time.monotonic() < ends:
        time.sleep(0.01)
    number, _, who = counter.read_bytes().partition(b"\n")
    assert int(number) > int(before.partition(b"\n")[0])
    assert len(number) == 20
    assert json.loads(who) == json.loads((tmp_path / "claims/part.0").read_text())


def test_of_many_builders_exactly_one_takes_a_dead_ones_part(tmp_path):
    for _ in range(10):
        elsewhere(tmp_path)
        builders = [Leases(tmp_path, patience_seconds=-1) for _ in range(8)]
        assert not any(one.claim("part") for one in builders)  # the first look
        start, won = threading.Barrier(8), []

        def race(one, start=start, won=won):
            start.wait()
            if one.claim("part"):
                won.append(one)

        threads = [threading.Thread(target=race, args=(one,)) for one in builders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if won:  # all may have stepped back: they look again
            assert won[-1].claim("part") is False
            holders = [one for one in won if not _is_lost(one)]
            assert len(holders) == 1
        for one in builders:
            one.close()
        leftovers(tmp_path)


def _is_lost(one):
    try:
        one.check("part")
    except ClaimLostError:
        return True
    return False


# ------------------------------------------------------------------ the living and the dead


def test_builder_elsewhere_is_taken_over_once_its_counter_stood_still(builder, tmp_path, clock):
    elsewhere(tmp_path)
    observer = builder(patience_seconds=90)
    for seconds in (0, 60, 30):
        clock[0] += seconds
        assert not observer.claim("part")
    clock[0] += 1
    assert observer.claim("part")
    assert (tmp_path / "claims/part.1").exists()
    leftovers(tmp_path)


def test_builder_elsewhere_that_counts_is_left_alone(builder, tmp_path, clock):
    observer = builder(patience_seconds=90)
    for count in range(10):
        elsewhere(tmp_path, count=b"%d" % count)
        assert not observer.claim("part")
        clock[0] += 80
    leftovers(tmp_path)


def test_time_of_day_and_dates_of_files_play_no_part(builder, tmp_path, clock, monkeypatch):
    jumps = itertools.cycle((0.0, 4e9, -5.0, 1.0))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(jumps)))
    observer = builder(patience_seconds=90)
    for count, date in enumerate((0, 4_000_000_000, 1, 2_000_000_000)):
        elsewhere(tmp_path, count=b"%d" % count)
        for file in (tmp_path / "claims").iterdir():
            os.utime(file, (date, date))
        assert not observer.claim("part")
        clock[0] += 80
    assert not observer.claim("part")
    clock[0] += 11
    assert observer.claim("part")
    leftovers(tmp_path)


@pytest.mark.parametrize("torn", [b"", b'{"builder": "f', b"[]", b"\xff"])
def test_claim_that_cannot_be_read_is_taken_over_after_a_while(builder, tmp_path, clock, torn):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/part.0").write_bytes(torn)
    observer = builder(patience_seconds=90)
    assert not observer.claim("part")
    clock[0] += 91
    assert observer.claim("part")


@pytest.mark.parametrize("generation", [3, 10**20])
def test_claim_of_any_generation_is_taken_over_and_released_at_once(
    builder, tmp_path, clock, generation
):
    for one in (generation - 2, generation):
        elsewhere(tmp_path, generation=one)
    observer = builder(patience_seconds=90)
    assert not observer.claim("part")
    clock[0] += 91
    assert observer.claim("part")
    observer.release("part")
    assert list((tmp_path / "claims").glob("part.*")) == []
    leftovers(tmp_path)


def test_killed_process_of_this_machine_is_taken_over_at_once(builder, tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from kdscale.cache.lease import Leases\n"
        "print(Leases(pathlib.Path(sys.argv[1])).claim('part'), flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "True\n"
        observer = builder()
        assert not observer.claim("part")
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried yet
        assert observer.claim("part")
    leftovers(tmp_path)


def test_killed_at_any_moment_a_claimant_leaves_nothing_that_the_next_one_waits_for(tmp_path):
    script = Path(__file__).with_name("crash_lease.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "run"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8  # changes of the disk: folder, counter and claim, and back


GARBAGE = [
    b"", b"{", b"[]", b"null", b"[" * 60000, b"{}", b"9" * 5000, b"\xff\x00",
    *(
        json.dumps(
            {"builder": "f" * 16, "host": "h", "pid": 1, "machine": "m", "started": "5"} | change
        ).encode()
        for change in (
            {"pid": "x"}, {"pid": -1}, {"pid": 10**400}, {"pid": True}, {"pid": 1.5},
            {"pid": None}, {"host": []},
            {"builder": "../../x"}, {"builder": ""}, {"builder": 5}, {"machine": None},
            {"started": 5}, {"started": ["x"]}, {"host": "a\nb"}, {"builder": "x" * 5000},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_in_place_of_a_claim_or_counter_is_nobodys_within_seconds(
    builder, tmp_path, clock, garbage
):
    (tmp_path / "claims").mkdir()
    for name in ("part.0", "another.7"):
        (tmp_path / "claims" / name).write_bytes(garbage)
    (tmp_path / f"claims/{'f' * 16}.builder").write_bytes(b"0" * 20 + b"\n" + garbage)
    assert living_builder(tmp_path, patience_seconds=-1) is None
    observer = builder()
    assert not observer.claim("part")
    assert observer.holder("part") is None
    clock[0] += 1.1
    assert observer.claim("part")
    clock[0] += 91
    observer._look_for_dead()
    assert sorted(file.suffix for file in (tmp_path / "claims").iterdir()) == [
        ".0", ".1", ".builder"
    ]  # fmt: skip


def test_what_builders_elsewhere_left_is_cleared_once_it_stood_still(builder, tmp_path, clock):
    elsewhere(tmp_path)
    observer = builder()
    assert observer.claim("mine")
    for seconds in (0, 89):
        clock[0] += seconds
        observer._look_for_dead()
        assert len(list((tmp_path / "claims").iterdir())) == 4
    clock[0] += 2
    observer._look_for_dead()
    assert {file.name for file in (tmp_path / "claims").iterdir()} == {
        "mine.0", f"{observer.builder}.builder"
    }  # fmt: skip


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("renames", [True, False])
def test_without_hard_links_one_of_many_creates_too(tmp_path, monkeypatch, number, renames):
    def refuse(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    if not renames:
        monkeypatch.setattr(folder_module.ctypes, "CDLL", lambda *_, **__: None)
    store = LocalFolder(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            key = str(turn)
            made = list(pool.map(lambda who, key=key: store.create(key, b"%d" % who), range(8)))
            assert made.count(True) == 1
            assert store.read(f"{turn}") == b"%d" % made.index(True)
    assert not list(tmp_path.glob(".*"))


def test_builder_that_gets_no_thread_leaves_nothing(tmp_path, monkeypatch):
    def refuse(_self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"), Leases(tmp_path) as claims:
            claims.claim("part")
    assert not list(tmp_path.glob("claims/*"))


@pytest.mark.parametrize("change", [{"builder": "0" * 16}, {"pid": 1}, {"pid": 2**22 + 1}])
def test_number_of_a_process_that_ended_may_be_anothers_now(builder, tmp_path, change):
    builder().claim("part")
    claim = json.loads((tmp_path / "claims/part.0").read_text())
    (tmp_path / "claims/other.0").write_text(json.dumps(claim | change))
    assert builder().claim("other")
    leftovers(tmp_path)


# ------------------------------------------------------------------ the slow


def test_builder_that_stood_still_finds_its_part_taken_and_leaves_it(builder, tmp_path, clock):
    slow, heir = builder(), builder(patience_seconds=90)
    assert slow.claim("part")
    claim = json.loads((tmp_path / "claims/part.0").read_text()) | {"machine": "other"}
    slow._content = json.dumps(claim).encode()
    (tmp_path / "claims/part.0").write_bytes(slow._content)
    slow.check("part")
    assert not heir.claim("part")
    clock[0] += 91
    assert heir.claim("part")
    with pytest.raises(ClaimLostError):
        slow.check("part")
    slow.release("part")
    heir.check("part")
    heir.release("part")
    with pytest.raises(ClaimLostError):
        slow.check("part")


def test_claim_of_a_part_that_was_finished_and_begun_anew_meanwhile_steps_back(
    builder, tmp_path, clock, monkeypatch
):
    elsewhere(tmp_path)
    late, heir, third = builder(), builder(), builder()
    for one in (late, heir):
        assert not one.claim("part")
    clock[0] += 1000
    create = LocalFolder.create

    def delayed(self, key, data):
        if key != "claims/part.1":
            return create(self, key, data)
        monkeypatch.setattr(LocalFolder, "create", create)
        assert heir.claim("part")
        heir.release("part")
        assert third.claim("part")
        return create(self, key, data)

    monkeypatch.setattr(LocalFolder, "create", delayed)
    assert not late.claim("part")
    third.check("part")
    assert [file.name for file in (tmp_path / "claims").glob("part.*")] == ["part.0"]
    leftovers(tmp_path)


def test_shard_whose_claim_is_lost_is_not_written(tmp_path, builder):
    manifest = synthetic.asked()
    manifest = create_or_resume(tmp_path / "c.zarr", manifest, synthetic.labels(manifest))
    writer = ShardWriter(tmp_path / "c.zarr", manifest)
    looks = itertools.count()

    def lost_after_the_first_object():
        if next(looks):
            raise ClaimLostError

    with pytest.raises(ClaimLostError):
        writer.write(0, 0, synthetic.rows(manifest, 0, 0), 0.0, lost_after_the_first_object)
    assert not writer.records.is_committed(0, 0)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "c.zarr/digests/c/0/0").exists()
    writer.write(0, 0, synthetic.rows(manifest, 0, 0), 0.0)
    assert writer.records.is_committed(0, 0)


# ------------------------------------------------------------------ disks and folders


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "write", "mkdir"])
def test_disk_that_refuses_a_claim_is_a_storage_error(tmp_path, monkeypatch, number, call):
    def refuse(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    with Leases(tmp_path) as claims:
        if call == "write":
            claims.claim("another part")
        monkeypatch.setattr(*((Path, "mkdir") if call == "mkdir" else (os, call)), refuse)
        with pytest.raises(StorageError, match=os.strerror(number)):
            claims.claim("part")
        monkeypatch.undo()
        assert not list(tmp_path.glob("claims/part.*"))
        assert claims.claim("part")


def test_folder_that_another_builder_removed_is_made_again(builder, tmp_path):
    one = builder()
    assert one.claim("part")
    one.release("part")
    leftovers(tmp_path)
    (tmp_path / "claims").rmdir()
    assert one.claim("part")


def test_clearing_removes_what_the_dead_left_and_nothing_that_is_held(builder, tmp_path):
    elsewhere(tmp_path)
    one = builder()
    assert one.claim("manifest")
    one.clear()
    assert len(list((tmp_path / "claims").iterdir())) == 2
    one.check("manifest")


def test_folder_of_something_else_is_no_claims_folder(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/insurance.pdf").write_text("mine")
    assert not is_lease("claims/insurance.pdf")
    manifest = synthetic.asked()
    with pytest.raises(StorageError, match="is not a cache"):
        create_or_resume(tmp_path, manifest, synthetic.labels(manifest))
