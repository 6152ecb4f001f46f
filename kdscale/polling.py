"""Waiting for what no one signals: a file, a lease, an object in a store."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.1
T = TypeVar("T")


def _nothing() -> None:
    """Check nothing."""


def wait_until(
    ready: Callable[[], T],
    *,
    seconds: float = math.inf,
    first: Callable[[], object] = _nothing,
    check: Callable[[], object] = _nothing,
) -> T:
    """Poll until `ready` returns something true, or for some seconds, and return its last value.

    Args:
        ready: returns whether there is no more to wait for.
        seconds: longest time to wait.
        first: called once, before the first pause: to log what is waited for.
        check: called before each pause; ends the wait by raising.
    """
    ends = time.monotonic() + seconds
    waited = False
    while not (found := ready()) and time.monotonic() < ends:
        check()
        if not waited:
            first()
            waited = True
        time.sleep(min(POLL_SECONDS, max(0.0, ends - time.monotonic())))
    return found
