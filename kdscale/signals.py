"""Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP: what they end at once, and what is brought to an end first.

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

_STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Of schedulers, and of a terminal or connection that is closed."""
_AGAIN_SECONDS = 0.01

log = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM, SIGUSR1 or SIGHUP where nothing needs saving first."""

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
    """SIGTERM, SIGUSR1 and SIGHUP end the block as Ctrl-C does; for a process, which ends with it.

    SIGHUP stays ignored where it was ignored, as by `nohup`.
    """
    handled = [number for number in _STOPPING if not _is_left_ignored(number)]
    for number in handled:
        signal.signal(number, _ending)
    sys.unraisablehook = _ending.again
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)  # how it ended stands


def _is_left_ignored(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


@dataclass(slots=True)
class StopRequest:
    """A request for an orderly end by Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP."""

    received: int | None = None
    """The signal."""

    def interrupted(self, message: str) -> Interrupted:
        """What to raise once the state is saved; its exit code tells a scheduler from a person."""
        return (Interrupted if self.received == signal.SIGINT else Stopped)(message)


@contextmanager
def orderly_stop() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or stopping signal into a request; a second Ctrl-C ends at once.

    Raises:
        KeyboardInterrupt: the block came to its end without following the request.
    """
    request = StopRequest()

    def receive(number: int, _frame: FrameType | None) -> None:
        request.received, _ending.begun = number, True
        log.info("stopping as soon as what is under way is safe; Ctrl-C again ends at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handled((signal.SIGINT, *_STOPPING), receive):
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
    wanted = [number for number in numbers if not _is_left_ignored(number)]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
