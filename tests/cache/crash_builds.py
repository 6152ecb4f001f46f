"""Kills builds at chosen moments and checks what they leave; run by test_crash as a process.

The parent imports everything once and starts no thread; each build is a fork of it. Prints one
JSON object; exits with a traceback where a check fails.
"""

import json
import os
import random
import shutil
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import synthetic

from kdscale.cache.layout import shard_name
from kdscale.cache.reader import CacheReader
from kdscale.cache.repair import discard_bad_shards
from kdscale.cache.verify import verify
from kdscale.errors import CacheIncompleteError, CacheNotFoundError

ASKED = synthetic.asked(num_samples=6, shard_samples=2)  # 2 views of 3 shards
BEGUN = replace(ASKED, num_views=1)
WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def kill_at(moment, root):
    """SIGKILL this process just before its `moment`-th change of the disk below `root`."""
    left = moment

    def change():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, args):
        written = event == "open" and args[2] & WRITES and str(args[0]).startswith(str(root))
        if written or event in CHANGES:
            change()

    sys.addaudithook(hook)

    def torn_or_flushed(descriptor):
        if left == 1 and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)  # never reached the disk
        change()

    os.fsync = torn_or_flushed


def in_child(work):
    """Run `work` in a fork; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start_child(work), 0)[1])


def start_child(work):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def check_leftovers(path, known_views):
    """Whatever the moment: an honest reader, and a verdict that blames nothing on the disk."""
    try:
        CacheReader(path)
    except CacheNotFoundError:
        assert not (path / "zarr.json").exists()
        return
    except CacheIncompleteError:
        verdict = verify(path)
        assert not verdict.ok
        assert not verdict.complete
    else:
        verdict = verify(path)
        assert verdict.ok
        check_values(path)
    assert verdict.corrupt_shards == ()
    stated = set(verdict.missing_shards)
    assert {shard_name(view, s) for view in range(known_views) for s in range(3)}.isdisjoint(stated)


def check_values(path):
    reader = CacheReader(path)
    for view in range(reader.manifest.num_views):
        got, wanted = reader.read_view(view), synthetic.expected_view(ASKED, view)
        assert all((got[name] == wanted[name]).all() for name in wanted)
    assert (reader.labels() == synthetic.labels(ASKED)).all()


def check_completes(path, reference):
    """A rerun keeps what is committed and ends as the uninterrupted build does, byte for byte."""
    before = {file: file.stat().st_mtime_ns for file in path.glob("commits/c/*/*/0")}
    synthetic.build(path, ASKED)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert synthetic.files(path) == reference
    assert verify(path).ok
    check_values(path)


def moments_of_a_build(root, begun, step):
    """Kill before each `step`-th change until a build gets through; returns how many there are."""
    reference = uninterrupted(root)
    start = root / "start.zarr"
    if begun:
        assert in_child(lambda: synthetic.build(start, BEGUN)) == 0
    path = root / "killed.zarr"
    for moment in range(1, 10_000, step):
        shutil.rmtree(path, ignore_errors=True)
        if begun:
            shutil.copytree(start, path)

        def build(moment=moment):
            kill_at(moment, root)
            synthetic.build(path, ASKED)

        status = in_child(build)
        assert status in (0, -signal.SIGKILL), f"moment {moment}: exit status {status}"

        def check():
            check_leftovers(path, known_views=1 if begun else 0)
            check_completes(path, reference)

        assert in_child(check) == 0, f"killed before change {moment}"
        if status == 0:
            return moment - 1
    raise AssertionError("the build never got through")


def moments_of_a_repair(root, step):
    """Kill before each `step`-th change until a repair gets through: no bad cache passes for sound.

    A bad record, a bad object, one that is gone, bad labels and a bad index of records.
    """
    reference = uninterrupted(root)
    damaged, path = root / "damaged.zarr", root / "killed.zarr"
    shutil.copytree(root / "whole.zarr", damaged)
    (damaged / "logits/c/1/2/0").unlink()
    for key in ("commits/c/0/0/0", "digests/c/0/2", "labels/c/0", "commits/zarr.json"):
        (damaged / key).write_bytes(b"bad")
    for moment in range(1, 10_000, step):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(damaged, path)

        def repair(moment=moment):
            kill_at(moment, root)
            discard_bad_shards(path, synthetic.labels(ASKED))
            synthetic.build(path, ASKED)

        status = in_child(repair)
        assert status in (0, -signal.SIGKILL), f"moment {moment}: exit status {status}"

        def check(moment=moment):
            assert not verify(path).ok or synthetic.files(path) == reference
            if moment % 2:  # a build goes on as well, unless the damage is not taken out yet
                synthetic.build(path, ASKED)
                assert not verify(path).ok or synthetic.files(path) == reference
            discard_bad_shards(path, synthetic.labels(ASKED))
            synthetic.build(path, ASKED)
            assert synthetic.files(path) == reference

        assert in_child(check) == 0, f"killed before change {moment}"
        if status == 0:
            return moment - 1
    raise AssertionError("the repair never got through")


def random_moments(root, kills):
    """Kill builds after random delays, those that resume too, until so many kills hit one."""
    reference = uninterrupted(root)
    random_delay = random.Random(20)
    began = time.perf_counter()
    assert in_child(lambda: synthetic.build(root / "timed.zarr", ASKED)) == 0
    longest = time.perf_counter() - began
    path = root / "killed.zarr"
    hit = turn = 0
    while hit < kills:
        assert turn < 20 * kills, "builds end before they can be killed"
        if turn % 3 == 0:  # the other turns kill a build that resumes
            shutil.rmtree(path, ignore_errors=True)
        child = start_child(lambda: synthetic.build(path, ASKED))
        time.sleep(random_delay.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        hit += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert in_child(lambda: check_leftovers(path, 0)) == 0, f"turn {turn}"
        if turn % 3 == 2 or hit == kills:
            assert in_child(lambda: check_completes(path, reference)) == 0, f"turn {turn}"
        turn += 1
    return hit


def uninterrupted(root):
    path = root / "whole.zarr"
    assert in_child(lambda: synthetic.build(path, ASKED)) == 0
    return synthetic.files(path)


if __name__ == "__main__":
    os.fsync = lambda _descriptor: None  # a kill, unlike a power cut, loses nothing unflushed
    mode, folder = sys.argv[1], Path(sys.argv[2])
    runs = {
        "some of new": lambda: moments_of_a_build(folder, begun=False, step=13),
        "new": lambda: moments_of_a_build(folder, begun=False, step=5),
        "all of new": lambda: moments_of_a_build(folder, begun=False, step=1),
        "grown": lambda: moments_of_a_build(folder, begun=True, step=3),
        "all of grown": lambda: moments_of_a_build(folder, begun=True, step=1),
        "repair": lambda: moments_of_a_repair(folder, step=5),
        "all of repair": lambda: moments_of_a_repair(folder, step=1),
        "random": lambda: random_moments(folder, kills=20),
        "random 100": lambda: random_moments(folder, kills=100),
    }
    json.dump({"kills": runs[mode]()}, sys.stdout)
