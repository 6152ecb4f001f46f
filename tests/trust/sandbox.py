"""Runs a function in a forked child with limits of time, memory and file size.

A damaged or hostile file may hang its reader, exhaust memory or end the process: none of that
may happen to the test run. What the child prints, returns or raises comes back as an `Outcome`.
"""

import contextlib
import faulthandler
import gc
import json
import math
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATED = (0, 1, 2)
"""Exit codes of a command that ended as it should: done, a stated failure, wrong usage."""
SECONDS = 60.0
"""Time limit of a child; of the processor's time it gets a sixth. Both are far above the usual
tenth of a second: the machine may be loaded."""
GROWTH_BYTES = 512 << 20
"""Largest growth of the resident memory that is accepted."""
_ADDRESS_SPACE_BYTES = 2 << 30  # beyond what the parent has: threads reserve a lot
_FILE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a function in a child."""

    exit_code: int
    """Of `SystemExit`, 0 without one; 70 for any other exception; negative: the signal."""
    stdout: str
    stderr: str
    value: Any
    """What the function returned, as JSON has it; None where it raised something."""
    crash: str | None
    """The traceback of an exception other than `SystemExit`; None without one."""
    hung: bool
    """Whether the child was killed at the time limit."""
    growth_bytes: int
    """Largest resident memory minus that at the start."""

    @property
    def fault(self) -> str | None:
        """What no input may cause, in words; None if it ended with a stated exit code."""
        last = " | ".join((self.crash or self.stderr).strip().splitlines()[-6:])
        if self.hung or self.exit_code == -signal.SIGXCPU:
            return f"hung: {last}"
        if self.crash is not None or "Traceback" in self.stderr:
            return f"traceback: {last}"
        if self.exit_code not in STATED:
            return f"exit code {self.exit_code}: {last}"
        if "out of memory" in self.stderr or self.growth_bytes > GROWTH_BYTES:
            return f"memory: grew by {self.growth_bytes >> 20} MiB: {last}"
        return None


def run(function: Callable[[], Any], *, cwd: Path, seconds: float = SECONDS) -> Outcome:
    """Call a function in a forked child; `cwd` is its current folder, `cwd/root` its cache root."""
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+", errors="backslashreplace") as err,  # as Python has it
        tempfile.TemporaryFile("w+") as report,
    ):
        readable, writable = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fork beside idle threads, from Python 3.12 on
            child = os.fork()
        if child == 0:
            _child(function, cwd, seconds, out, err, report)
        os.close(writable)
        hung = not select.select([readable], [], [], seconds)[0]
        if hung:
            _kill(child)
        os.close(readable)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        stdout, stderr, told = (_content(file) for file in (out, err, report))
    found = json.loads(told) if told else {"exit_code": status}
    defaults = {"value": None, "crash": None, "growth_bytes": 0}
    return Outcome(stdout=stdout, stderr=stderr, hung=hung, **(defaults | found))


def run_command(*args: object, cwd: Path, seconds: float = SECONDS) -> Outcome:
    """Run a kdscale command in a child, as its entry point does."""
    return run(lambda: main(*args), cwd=cwd, seconds=seconds)


def main(*args: object) -> None:
    """Run a kdscale command in this process, which is a child; ends in SystemExit.

    Moments take the place of the time for which a builder that may be dead is watched.
    """
    from kdscale.cache import claims
    from kdscale.cli import main

    claims.PATIENCE_SECONDS, claims.INTERVAL_SECONDS = 0.5, 0.1
    sys.argv = ["kdscale", *map(str, args)]
    main()


def listing(folder: Path) -> dict[str, bytes | None]:
    """Content of all files below a folder by path; None of a folder in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _child(
    function: Callable[[], Any], cwd: Path, seconds: float, out: Any, err: Any, report: Any
) -> None:
    """Never returns."""
    try:
        gc.freeze()  # the parent's objects stay shared with it
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = out, err
        faulthandler.register(signal.SIGUSR2, file=err, all_threads=False)
        warnings.resetwarnings()
        _limit(seconds)
        before = _resident_bytes("VmRSS")
        os.chdir(cwd)
        os.environ["KDSCALE_CACHE_ROOT"] = "root"
        told = _call(function)
        told["growth_bytes"] = max(0, _resident_bytes("VmHWM") - before)
        json.dump(told, report)
        for file in (out, err, report):
            file.flush()
    finally:
        os._exit(0)


def _call(function: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"exit_code": 0, "value": function()}
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201  (as Python does it)
        return {"exit_code": end.code if isinstance(end.code, int) else bool(end.code)}
    except BaseException:
        return {"exit_code": 70, "crash": traceback.format_exc()}


def _limit(seconds: float) -> None:
    for what, more in (
        (resource.RLIMIT_AS, _resident_bytes("VmSize") + _ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CPU, math.ceil(seconds / 6)),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (more, hard))


def _resident_bytes(name: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where the system has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0


def _kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGUSR2)  # where it stands, into its standard error
        time.sleep(0.2)
        os.kill(child, signal.SIGKILL)


def _content(file: Any) -> str:
    file.flush()
    file.seek(0)
    return str(file.read())
