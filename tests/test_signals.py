"""Signals end a process at once, or in order, whatever Python is doing just then."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest

from kdscale import signals
from kdscale.errors import Interrupted, Stopped
from kdscale.signals import Terminated, orderly_stop

CODES = {
    signal.SIGINT: (Interrupted, 130),
    signal.SIGTERM: (Stopped, 75),
    signal.SIGUSR1: (Stopped, 75),
    signal.SIGHUP: (Stopped, 75),
}

DYING = """
import signal, sys, time, weakref
from kdscale.signals import Terminated, ending_at_once

class Thing:
    pass

def clear_up(_):
    signal.raise_signal(signal.SIGTERM)
    sum(range(10))

try:
    with ending_at_once():
        try:
            thing = Thing()
            reference = weakref.ref(thing, clear_up)
            del thing
            time.sleep(30)
        finally:
            signal.raise_signal(signal.SIGTERM)  # again: it is ending
    signal.raise_signal(signal.SIGTERM)
except Terminated as end:
    signal.raise_signal(signal.SIGTERM)
    print(end, end.exit_code)
"""


def test_end_that_python_drops_while_it_clears_up_comes_again_and_others_change_nothing():
    done = subprocess.run(
        [sys.executable, "-c", DYING], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM 75\n", "")


def test_end_that_cut_an_import_short_is_reported_as_an_end(kdscale, monkeypatch):
    def cut_short(_name):
        raise ImportError("cannot import name 'nothing' from partially initialized module 'thing'")

    monkeypatch.setattr("kdscale.config.recipe_text", cut_short)
    with pytest.raises(ImportError):
        kdscale("recipes", "mnist")
    monkeypatch.setattr(signals._ending, "raised", Terminated(signal.SIGTERM))
    done = kdscale("recipes", "mnist")
    assert done.exit_code == 75
    assert done.stderr.startswith("Error: stopped by SIGTERM; finished work is stored")
    assert done.stderr.count("Error") == 1


@pytest.mark.parametrize(
    ("said", "rank", "told"),
    [
        ("gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:41858", "1", True),
        ("NCCL error: remote process exited or there was a network error", "1", True),
        ("Connection closed by peer", None, False),
        ("something else", "1", False),
    ],
)
def test_lost_process_is_reported_in_a_line(kdscale, monkeypatch, said, rank, told):
    def lost(_name):
        raise RuntimeError(said)

    monkeypatch.setattr("kdscale.config.recipe_text", lost)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    if not told:
        with pytest.raises(RuntimeError, match=re.escape(said)):
            kdscale("recipes", "mnist")
        return
    done = kdscale("recipes", "mnist")
    assert done.exit_code == 76
    assert done.stderr.startswith("Error in process 1: another process of this launch has ended")


@contextlib.contextmanager
def orderly_stop_unless_raised():
    """A request that is followed: the block ends with what it raises."""
    with contextlib.suppress(Interrupted), orderly_stop() as stop:
        yield stop
        raise stop.interrupted("followed")


@pytest.mark.parametrize("number", CODES)
def test_request_is_remembered_and_prints_how_to_end(number):
    before = signal.getsignal(number)
    error, code = CODES[number]
    with orderly_stop_unless_raised() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
        stopped = stop.interrupted("stopped")
    assert (type(stopped), stopped.exit_code) == (error, code)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", CODES)
def test_request_that_came_too_late_to_be_followed_ends_what_comes_next(number):
    with pytest.raises(KeyboardInterrupt) as ended, orderly_stop():
        signal.raise_signal(number)
    assert isinstance(ended.value, Terminated) == (number != signal.SIGINT)
    if number != signal.SIGINT:
        assert str(ended.value) == signal.Signals(number).name


def test_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), orderly_stop():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_other_threads_are_not_stopped():
    def work():
        with orderly_stop() as stop:
            requests.append(stop.received)

    requests = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests == [None]


def test_end_before_a_command_has_begun_is_reported_alike():
    early = (
        "import signal, kdscale.cli as c\nc.cli.parse_args = lambda *_: signal.raise_signal(15)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{early}c.main()"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("Error: stopped by SIGTERM; finished work is")


IGNORED = """
import signal
from kdscale.signals import ending_at_once, orderly_stop

signal.signal(signal.SIGHUP, signal.SIG_IGN)
with ending_at_once():
    signal.raise_signal(signal.SIGHUP)
    with orderly_stop() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
    signal.raise_signal(signal.SIGHUP)
print(signal.getsignal(signal.SIGHUP).name)
"""


def test_hangup_stays_ignored_where_it_was_as_nohup_has_it():
    done = subprocess.run(
        [sys.executable, "-c", IGNORED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIG_IGN\n", "")


@pytest.mark.thorough
def test_training_whose_terminal_is_closed_saves_its_state(write_recipe, tmp_path):
    """Bars and messages cannot be written then, either."""
    recipe = write_recipe(
        student={"model": "tiny_models:slow_mlp", "options": {}, "train": {"epochs": 500}}
    )
    ours, theirs = pty.openpty()
    training = subprocess.Popen(
        [sys.executable, "-m", "kdscale", "train", recipe, "--run", "run"],
        cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    ends = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints").is_dir() and time.monotonic() < ends:
        with contextlib.suppress(OSError):
            os.read(ours, 1 << 16)
    os.close(ours)  # the terminal hangs up
    assert training.wait(60) in (75, 1)  # 1 where not even the reason can be written
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_command_without_a_state_of_its_own_ends_at_once(commands, write_recipe, tmp_path, number):
    """A build that has just begun."""
    recipe = write_recipe(teacher={"model": "tiny_models:slow", "options": {"seconds": 1.0}})
    commands.start("cache", "build", recipe, cwd=tmp_path)
    ends = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("images/*/*")) and time.monotonic() < ends:
        time.sleep(0.001)
    commands.kill(number)
    assert commands.wait() == 75
    said = commands.output.read_text().splitlines()[-1]
    assert said.startswith("Error: stopped")
    assert "run the same command again" in said
