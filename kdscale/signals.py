"""Ctrl-C, SIGTERM and SIGUSR1: what they end at once, and what is brought to an end first.

What has no state of its own to save is ended where it is: what is finished is on disk. What has
some asks for an `orderly_stop`, and looks at the request between two things that belong together.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from kdscale.errors import Interrupted, Stopped

Handler = Callable[[int, FrameType | None], None]

_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)
_AGAIN_SECONDS = 0.01

log = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGUSR1 where nothing needs saving first."""

    exit_code = Stopped.exit_code

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(slots=True)
class _Ending:
    """A handler that ends what is under way, once."""

    begun: bool = False
    raised: Terminated | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self.begun:  # a launcher asks again while its processes end: nothing is to change
            self.begun, self.raised = True, Terminated(number)
            raise self.raised

    def again(self, lost: "sys.UnraisableHookArgs") -> None:
        """Come back a little later where Python was just clearing up, and has dropped the end."""
        if not isinstance(lost.exc_value, Terminated):
            sys.__unraisablehook__(lost)
            return
        self.begun = False
        threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), lost.exc_value.number)).start()


_ending = _Ending()


def terminated() -> Terminated | None:
    """What has ended this process, whatever has become of it: an import cut short fails oddly."""
    return _ending.raised


@contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the block as Ctrl-C does; for a whole process, which ends with it."""
    for number in _SCHEDULERS:
        signal.signal(number, _ending)
    sys.unraisablehook = _ending.again
    try:
        yield
    finally:
        for number in _SCHEDULERS:
            signal.signal(number, signal.SIG_IGN)  # how it ended stands


@dataclass(slots=True)
class StopRequest:
    """Whether Ctrl-C, SIGTERM or SIGUSR1 asked for an orderly end."""

    received: int | None = None
    """The signal."""

    def interrupted(self, message: str) -> Interrupted:
        """What to raise once the state is saved; its exit code tells a scheduler from a person."""
        return (Interrupted if self.received == signal.SIGINT else Stopped)(message)


@contextmanager
def orderly_stop() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, SIGTERM or SIGUSR1 into a request; a second Ctrl-C ends at once.

    Raises:
        KeyboardInterrupt: the block came to its end without following the request.
    """
    request = StopRequest()

    def receive(number: int, _frame: FrameType | None) -> None:
        request.received, _ending.begun = number, True
        log.info("stopping as soon as what is under way is safe; Ctrl-C again ends at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handled((signal.SIGINT, *_SCHEDULERS), receive):
        yield request
    if request.received == signal.SIGINT:
        raise KeyboardInterrupt
    if request.received is not None:
        raise Terminated(request.received)


@contextmanager
def _handled(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # the only one that may say so
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
