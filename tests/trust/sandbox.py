"""Calls functions in forked children, with limits of time, memory and file size.

A damaged or hostile file may hang its reader, exhaust memory or end the process: none of that
may happen to the test run. What a call prints, returns or raises comes back as an `Outcome`.
"""

import contextlib
import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

STATED = (0, 1, 2)
"""Exit codes of a command that ended as it should: done, a stated failure, wrong usage."""
SECONDS = 60.0
"""Time limit of a call; of the processor's time it gets a sixth. Both are far above the usual
tenth of a second: the machine may be loaded."""
GROWTH_BYTES = 512 << 20
"""Largest growth of the resident memory that is accepted."""
_ADDRESS_SPACE_BYTES = 2 << 30  # beyond what the parent has: threads reserve a lot
_FILE_BYTES = 256 << 20
_TIMERS = {signal.SIGALRM: signal.ITIMER_REAL, signal.SIGPROF: signal.ITIMER_PROF}
"""What ends a call that hangs: waiting, or computing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a call in a child."""

    exit_code: int
    """Of `SystemExit`, 0 without one; 70 for any other exception; negative: the signal."""
    stdout: str
    stderr: str
    value: Any = None
    """What the function returned, as JSON has it; None where it raised something."""
    crash: str | None = None
    """The traceback of an exception other than `SystemExit`; None without one."""
    growth_bytes: int = 0
    """Largest resident memory minus that at the start."""

    @property
    def fault(self) -> str | None:
        """What no input may cause, in words; None if it ended with a stated exit code."""
        last = " | ".join((self.crash or self.stderr).strip().splitlines()[-6:])
        if -self.exit_code in _TIMERS:
            return f"hung: {last}"
        if self.crash is not None or "Traceback" in self.stderr:
            return f"traceback: {last}"
        if self.exit_code not in STATED:
            return f"exit code {self.exit_code}: {last}"
        if "out of memory" in self.stderr or self.growth_bytes > GROWTH_BYTES:
            return f"memory: grew by {self.growth_bytes >> 20} MiB: {last}"
        return None


@dataclass(frozen=True, slots=True)
class Call:
    """A function to be called; `cwd` is its current folder, `cwd/root` its cache root."""

    function: Callable[[], Any]
    cwd: Path


def run(function: Callable[[], Any], *, cwd: Path, seconds: float = SECONDS) -> Outcome:
    """Call a function in a child of its own."""
    (outcome,) = run_all([Call(function, cwd)], seconds=seconds)
    return outcome


def run_command(*args: object, cwd: Path, seconds: float = SECONDS) -> Outcome:
    """Run a kdscale command in a child of its own, as its entry point does."""
    return run(lambda: main(*args), cwd=cwd, seconds=seconds)


def run_all(calls: Sequence[Call], *, seconds: float = SECONDS) -> list[Outcome]:
    """Call functions in one child, one after the other; after one that killed it, in another."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        while len(outcomes) < len(calls):
            status = _forked(calls, len(outcomes), Path(folder), seconds)
            while len(outcomes) < len(calls):
                outcome = _read(Path(folder), len(outcomes), status)
                outcomes.append(outcome)
                if outcome.exit_code == status < 0:
                    break
    return outcomes


def main(*args: object) -> None:
    """Run a kdscale command in this process, which is a child; ends in SystemExit.

    Moments take the place of the time for which a builder that may be dead is watched.
    """
    from kdscale.cache import lease
    from kdscale.cli import main

    lease.PATIENCE_SECONDS, lease.INTERVAL_SECONDS = 0.5, 0.1
    sys.argv = ["kdscale", *map(str, args)]
    main()


def listing(folder: Path) -> dict[str, bytes | None]:
    """Content of all files below a folder by path; None of a folder in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# --------------------------------------------------------------------------- the child


def _forked(calls: Sequence[Call], first: int, folder: Path, seconds: float) -> int:
    """Exit code of a child that makes the calls from `first` on; negative: the signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork beside idle threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        _make(calls, first, folder, seconds)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _make(calls: Sequence[Call], first: int, folder: Path, seconds: float) -> NoReturn:
    """Make the calls from `first` on, and end the process."""
    try:
        gc.freeze()  # the parent's objects stay shared with it
        os.environ["KDSCALE_CACHE_ROOT"] = "root"
        _limit(resource.RLIMIT_AS, _resident_bytes("VmSize") + _ADDRESS_SPACE_BYTES)
        _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
        _limit(resource.RLIMIT_CORE, 0)
        for number in range(first, len(calls)):
            with (
                _file(folder, number, "stdout").open("w") as out,
                _file(folder, number, "stderr").open("w", errors="backslashreplace") as err,
            ):
                _redirect(out, err)
                _limit_time(seconds)
                told = _call(calls[number])
                _limit_time(0)
            _file(folder, number, "json").write_text(json.dumps(told))
    finally:
        os._exit(0)


def _redirect(out: Any, err: Any) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = out, err
    warnings.resetwarnings()
    for number in _TIMERS:  # where it stands, into its standard error
        signal.signal(number, signal.SIG_DFL)
        faulthandler.register(number, file=err, all_threads=False, chain=True)


def _call(call: Call) -> dict[str, Any]:
    os.chdir(call.cwd)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory, from here on
    before = _resident_bytes("VmRSS")
    try:
        told = {"exit_code": 0, "value": call.function()}
    except SystemExit as end:
        told = {"exit_code": _exit_code(end)}
    except BaseException:
        told = {"exit_code": 70, "crash": traceback.format_exc()}
    return {**told, "growth_bytes": max(0, _resident_bytes("VmHWM") - before)}


def _exit_code(end: SystemExit) -> int:
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)  # noqa: T201  (as Python does it)
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _limit(what: int, largest: int) -> None:
    resource.setrlimit(what, (largest, resource.getrlimit(what)[1]))


def _limit_time(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds / 6)


def _resident_bytes(name: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where the system has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0


# --------------------------------------------------------------------------- what it left


def _file(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number}.{kind}"


def _read(folder: Path, number: int, status: int) -> Outcome:
    """The outcome of a call; of one that ended its child, with the child's exit code."""
    told = _file(folder, number, "json")
    found = json.loads(told.read_text()) if told.exists() else {"exit_code": status or 70}
    printed = {
        kind: _file(folder, number, kind).read_text(errors="backslashreplace")
        if _file(folder, number, kind).exists()
        else ""
        for kind in ("stdout", "stderr")
    }
    return Outcome(**printed, **found)
