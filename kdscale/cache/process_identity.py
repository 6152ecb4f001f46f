"""Which process created a claim, and whether it is known to have ended."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

_LARGEST_BYTES = 1 << 16
_LARGEST_PID = 1 << 31


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, as its claims and its counter name it."""

    builder: str
    """Identity of the builder in that process: 16 hexadecimal digits."""
    host: str
    """Name of its machine, for messages."""
    pid: int
    """Its number on that machine."""
    machine: str
    """Boot and process namespace of that machine; empty where the system does not tell."""
    started: str | None
    """When it was started, in ticks since boot; None where the system does not tell."""

    @classmethod
    def of_this(cls, builder: str) -> "ProcessIdentity":
        """Return the identity of a builder in this process."""
        pid = os.getpid()
        return cls(builder, socket.gethostname(), pid, this_machine(), _started(pid))

    def to_bytes(self) -> bytes:
        """Return it as JSON, as a claim holds it."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it ran, or runs, where this process sees it."""
        return bool(self.machine) and self.machine == this_machine()

    @property
    def has_ended(self) -> bool:
        """Whether it ran on this machine and no longer does: then nobody needs to wait for it."""
        if not self.is_here:
            return False
        if self.pid == os.getpid():
            return self.builder not in BUILDERS_HERE
        started = _started(self.pid)
        return started is not None and started != self.started


BUILDERS_HERE: set[str] = set()
"""Builders of this process. One that names its number and is not among them has ended."""


def parse_identity(content: bytes) -> ProcessIdentity | None:
    """Return the process that a claim names; None if the claim is damaged, or not yet written."""
    if len(content) > _LARGEST_BYTES:
        return None
    try:
        table: object = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, Mapping):
        return None
    builder, host = _text(table.get("builder")), _text(table.get("host"))
    machine, started = _text(table.get("machine")), _text(table.get("started"))
    pid = table.get("pid")
    if not builder or "/" in builder or not host or machine is None:
        return None
    if type(pid) is not int or not 0 < pid < _LARGEST_PID:
        return None
    if started is None and table.get("started") is not None:
        return None
    return ProcessIdentity(builder, host, pid, machine, started)


def _text(value: object) -> str | None:
    """Return a value if it is a text that fits into a file name and into a message."""
    return value if isinstance(value, str) and len(value) < 256 and value.isprintable() else None


@cache
def this_machine() -> str:
    """Return this boot of this machine, and whose processes it sees; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process was started, in ticks since boot: process numbers are used again.

    Empty where there is no such process, or one that only waits to be collected by its parent;
    None where the system does not tell.
    """
    if not Path("/proc/self/stat").exists():
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
