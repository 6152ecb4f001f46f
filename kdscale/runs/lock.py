"""One command at a time in a run's folder: two would write over each other's checkpoints."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from accelerate import Accelerator

from kdscale.atomic_write import files_below
from kdscale.cache import lease as claiming
from kdscale.cache.lease import Leases
from kdscale.distributed import main_process_first
from kdscale.errors import ClaimLostError, RunError
from kdscale.polling import wait_until
from kdscale.regular_files import check_no_links
from kdscale.runs.folder import FILES_OF_A_START

log = logging.getLogger(__name__)

_RUN = "run"


@contextmanager
def run_lock(folder: Path, accelerator: Accelerator) -> Iterator[Callable[[], None]]:
    """Lock a run's folder, or that of a recipe's runs, for a block: one launch at a time.

    What a killed process held is free at once, and on another machine once it has been watched for
    as long as a builder's claim. So a process that stood still for that long may have lost it:
    the block is given what raises RunError if so, to be called before it writes.

    A folder that this command created, and in which nothing was begun, is removed at its end.

    Raises:
        RunError: another command is at work there, or it is a file.
        StorageError: the disk is full, read-only or not permitted.
        UnsafePathError: it contains a link or a special file.
    """
    if folder.is_file():
        raise RunError(f"{folder} is a file: name another --run")
    check_no_links(folder)
    new = _missing(folder) if accelerator.is_main_process else []

    def still_ours() -> None:
        if accelerator.is_main_process:
            _check(claims, folder)

    try:
        with Leases(folder) as claims:
            with main_process_first(accelerator):
                if accelerator.is_main_process:
                    _claim(claims, folder)
                    claims.tidy()
            yield still_ours
    finally:
        if new:
            _remove_unless_begun(folder)
            for one in new:  # and those above it
                with suppress(OSError):  # something came of it
                    one.rmdir()


def _missing(folder: Path) -> list[Path]:
    """Return which of a folder and those above it are not there, the innermost first."""
    above = takewhile(lambda one: not one.exists(), (folder, *folder.parents))
    return list(above)


def _remove_unless_begun(folder: Path) -> None:
    """Remove what a start wrote that came no further, where nothing else is in the folder."""
    with suppress(OSError):
        found = {path.relative_to(folder).as_posix() for path in files_below(folder)}
        if found <= FILES_OF_A_START:
            for name in found:
                (folder / name).unlink()
            for place, _, _ in os.walk(folder, topdown=False):
                Path(place).rmdir()


def _claim(claims: Leases, folder: Path) -> None:
    def refuse_if_alive() -> None:
        if (who := claims.holder(_RUN)) is not None:
            raise RunError(
                f"another command, {who}, is at work in {folder}: let it end, or name another --run"
            )

    def mention() -> None:
        log.info(
            "another process was at work in %s: watching for up to %.0f s whether it is alive",
            folder, claiming.PATIENCE_SECONDS,
        )  # fmt: skip

    wait_until(lambda: claims.claim(_RUN), first=mention, check=refuse_if_alive)


def _check(claims: Leases, folder: Path) -> None:
    try:
        claims.check(_RUN)
    except ClaimLostError as lost:
        raise RunError(
            f"{folder} is another command's now: this one stood still for longer than "
            f"{claiming.PATIENCE_SECONDS:.0f} s, and was taken for dead. Nothing more is written "
            "here: let that one end"
        ) from lost
