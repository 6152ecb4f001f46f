"""Base of every command: errors become one line and an exit code, log records go to stderr."""

import errno
import logging
import os
import sys
from typing import Any, NoReturn

import click

from kdscale.errors import Interrupted, KdscaleError, MainProcessError, PeerLostError
from kdscale.formatting import printable, shortened
from kdscale.signals import Terminated, terminated

_OF_DISKS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO)
_GONE = (errno.ENOENT, errno.ESTALE)
_GONE_ADVICE = "it was moved or removed, or its disk is gone: put it back, or name another folder"
_NO_THREADS = "can't start new thread"
_FEWER = (
    "the system starts no more threads or processes: end other programs, raise the limit (ulimit "
    "-u), or use fewer workers"
)
_OTHER_TORCH = "operator torchvision::"
_TORCHVISION = (
    "torchvision was built for another torch than the one installed (a CPU build beside a CUDA "
    "build?): install both from the same index, see docs/start.md"
)
_OF_PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_PATH = "correct the paths of the command and of the recipe"
_DISK = "free space, or choose other folders with --run and --cache-root"
_LONGEST_LINE, _MOST_LINES = 4000, 100
"""Limits of a message: a value in it may come from a file of any size."""
_RESUMABLE = "finished work is stored: run the same command again (train: with --resume-if-begun)"
_PEER_LOST = "another process of this launch has ended: read its output; finished work is stored"
_PEER_LOST_SIGNS = (
    "Connection closed by peer", "Connection reset by peer", "remote process exited"
)  # fmt: skip
"""Texts of gloo and NCCL for this."""
_SINGLE_SAMPLE = "Expected more than 1 value per channel"  # torch's batch-norm
_BATCH_NORM = (
    "batch-norm cannot train on a single sample, which is all that a process has of a step, maybe "
    "an epoch's last: choose another global_batch_size, with several processes also sync_batch_norm"
)
_MEMORY = "use a smaller global_batch_size (or more accumulation), or precision = 'bfloat16'"


def print_terminated(end: Terminated) -> None:
    """Print which signal ended the command, and how to resume it."""
    if is_main_process():
        click.echo(f"Error: stopped by {end}; {_RESUMABLE}", err=True)


class Group(click.Group):
    """A group whose errors that a user can fix become one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except (Interrupted, KeyboardInterrupt) as stop:
            self._stopped(ctx, stop)
        except Exception as error:
            if (end := terminated()) is not None:
                self._stopped(ctx, end)
            self._explain(ctx, error)
            raise

    def _explain(self, ctx: click.Context, error: Exception) -> None:
        """Print a message and exit if a user can fix the error; return otherwise."""
        text = str(error)
        if isinstance(error, MainProcessError):
            ctx.exit(MainProcessError.exit_code)  # the main process has printed the reason
        if _OTHER_TORCH in text:
            self._fail(ctx, _TORCHVISION, 1)
        if isinstance(error, KdscaleError):
            self._fail(ctx, text, error.exit_code)
        if isinstance(error, OSError) and error.errno in _OF_DISKS:
            self._fail(ctx, f"{error.strerror}: {error.filename or 'a file'}: {_DISK}", 1)
        if isinstance(error, OSError) and error.errno in _GONE and error.filename:
            self._fail(ctx, f"{error.strerror}: {_path(error)}: {_GONE_ADVICE}", 1)
        if isinstance(error, BlockingIOError) or _NO_THREADS in text:
            self._fail(ctx, _FEWER, 1)
        if isinstance(error, OSError) and error.errno in _OF_PATHS:
            self._fail(ctx, f"{error.strerror}: {error.filename or 'a path'}: {_PATH}", 1)
        lost = isinstance(error, RuntimeError) and any(sign in text for sign in _PEER_LOST_SIGNS)
        if lost and "RANK" in os.environ:
            self._fail(ctx, _PEER_LOST, PeerLostError.exit_code)
        if isinstance(error, ValueError) and text.startswith(_SINGLE_SAMPLE):
            self._fail(ctx, _BATCH_NORM, 1)
        known = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
        if known or "can't allocate memory" in text:  # torch's words on a CPU
            self._fail(ctx, f"out of memory: {_MEMORY}", 1)

    def _stopped(self, ctx: click.Context, stop: Interrupted | KeyboardInterrupt) -> NoReturn:
        code = getattr(stop, "exit_code", Interrupted.exit_code)
        if not is_main_process():
            ctx.exit(code)  # a launch stops together, and its main process prints the reason
        if isinstance(stop, KeyboardInterrupt):  # nothing had to be saved first
            by = f"stopped by {stop}" if isinstance(stop, Terminated) else "interrupted"
            self._fail(ctx, f"{by}; {_RESUMABLE}", code)
        self._fail(ctx, str(stop), code)

    @staticmethod
    def _fail(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
        where = "" if is_main_process() else f" in process {os.environ['RANK']}"
        lines = [
            shortened(printable(line, keep="\t"), _LONGEST_LINE) for line in message.splitlines()
        ]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [f"... and {len(lines) - _MOST_LINES} lines more"]
        click.echo(f"Error{where}: " + "\n".join(lines), err=True)
        ctx.exit(exit_code)


def _path(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)


class _Printable(logging.Formatter):
    """Formats records with control characters escaped, whatever names they contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


class _Messages(logging.StreamHandler[Any]):
    """Messages on standard error that do not tear a progress bar.

    Those logged with `extra={"once": True}` appear once a command, however often they are logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._once: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "once", False):
            if record.getMessage() in self._once:
                return
            self._once.add(record.getMessage())
        bars = sys.modules.get("tqdm")
        if bars is None or not sys.stderr.isatty():  # a log file has no bar, and gets none
            super().emit(record)
            return
        try:
            bars.tqdm.write(self.format(record), file=sys.stderr)
        except OSError:  # the terminal is closed: work goes on, or is being saved
            self.handleError(record)


def start_logging() -> None:
    """Messages of the main process, and errors of all, go to standard error."""
    handler = _Messages()
    handler.setFormatter(_Printable("%(message)s"))
    logger = logging.getLogger("kdscale")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    logger.propagate = False


def is_main_process() -> bool:
    """Return whether this is the process of a launch that prints."""
    return os.environ.get("RANK", "0") == "0"
