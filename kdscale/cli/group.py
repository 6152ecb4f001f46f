"""What holds for every command: errors become one line and an exit code, messages a stream."""

import errno
import logging
import os
import sys
from typing import Any, NoReturn

import click

from kdscale.errors import Interrupted, KdscaleError, MainProcessError, PeerLostError
from kdscale.signals import Terminated

_DISK = "free space, or choose other folders with --run and --cache-root"
_KEPT = "what is finished is kept: run the same command again (train: with --resume-if-begun)"
_PEER_LOST = "another process of this launch has ended: see what it said; finished work is kept"
_PEER_LOST_SIGNS = (
    "Connection closed by peer", "Connection reset by peer", "remote process exited"
)  # fmt: skip
"""How gloo and NCCL say so."""
_MEMORY = "use a smaller global_batch_size (or more accumulation), or precision = 'bfloat16'"


class Group(click.Group):
    """Turns what a user can put right into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except MainProcessError:
            ctx.exit(MainProcessError.exit_code)  # the main process has said why
        except (Interrupted, KeyboardInterrupt) as stop:
            self._stopped(ctx, stop)
        except KdscaleError as error:
            self._fail(ctx, str(error), error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
                raise
            self._fail(ctx, f"{error.strerror}: {error.filename or 'a file'}: {_DISK}", 1)
        except (MemoryError, RuntimeError) as error:
            if "RANK" in os.environ and any(sign in str(error) for sign in _PEER_LOST_SIGNS):
                self._fail(ctx, _PEER_LOST, PeerLostError.exit_code)
            known = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
            if not known and "can't allocate memory" not in str(error):  # as a CPU says it
                raise
            self._fail(ctx, f"out of memory: {_MEMORY}", 1)

    def _stopped(self, ctx: click.Context, stop: Interrupted | KeyboardInterrupt) -> NoReturn:
        code = getattr(stop, "exit_code", Interrupted.exit_code)
        if not is_main_process():
            ctx.exit(code)  # a launch stops together, and its main process says it
        if isinstance(stop, KeyboardInterrupt):  # where nothing had to be saved first
            by = f"stopped by {stop}" if isinstance(stop, Terminated) else "interrupted"
            self._fail(ctx, f"{by}; {_KEPT}", code)
        self._fail(ctx, str(stop), code)

    @staticmethod
    def _fail(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
        where = "" if is_main_process() else f" in process {os.environ['RANK']}"
        click.echo(f"Error{where}: {message}", err=True)
        ctx.exit(exit_code)


class _Messages(logging.StreamHandler[Any]):
    """Messages on standard error that do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")
        if bars is None or not sys.stderr.isatty():  # a log file has no bar, and gets none
            super().emit(record)
        else:
            bars.tqdm.write(self.format(record), file=sys.stderr)


def start_logging() -> None:
    """Messages of the main process, and errors of all, go to standard error."""
    handler = _Messages()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("kdscale")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    logger.propagate = False


def is_main_process() -> bool:
    """Whether this is the process of a launch that speaks."""
    return os.environ.get("RANK", "0") == "0"
