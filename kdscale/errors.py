"""What a user can put right, each with one clear message and an exit code.

A message says what is wrong, what was got, what was wanted and what to do. The command line prints
it without a traceback and exits with `exit_code`: 2 for what was typed or written in a recipe,
1 for what the world held (data, weights, caches, disks). What was only put off has its own codes.
"""


class KdscaleError(Exception):
    """Base of everything kdscale raises on purpose."""

    exit_code = 1


class ConfigError(KdscaleError, ValueError):
    """A recipe, an override or a flag is wrong."""

    exit_code = 2


class DataError(KdscaleError, ValueError):
    """A data set is missing, misses a column, or holds an image that cannot be used."""


class ModelError(KdscaleError, ValueError):
    """A model cannot be created or does not fit the data."""


class WeightsError(KdscaleError, ValueError):
    """A weights file is missing, damaged, unsafe or of another model."""


class DownloadError(WeightsError):
    """Weights are elsewhere and cannot be fetched."""


class CacheError(KdscaleError):
    """Base of the cache's errors."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """There is no cache at this place."""

    def __str__(self) -> str:
        """Undo the (errno, strerror) formatting of OSError."""
        return str(self.args[0])


class CacheIncompleteError(CacheError):
    """The cache is still being built, or its build was stopped."""


class CacheMismatchError(CacheError, ValueError):
    """The cache holds other content than the recipe asks for."""


class CacheCorruptError(CacheError, ValueError):
    """Stored bytes are not those that were written."""


class OutOfRangeError(CacheError, IndexError):
    """A view, shard or sample is requested that the cache does not have."""


class ClaimLostError(CacheError):
    """Another builder has taken over what this one was working on."""


class ViewMismatchError(CacheError, ValueError):
    """The pixels of a view are not those that the teacher saw."""


class ExportError(KdscaleError):
    """A model cannot be exported, or its export computes other outputs."""


class RunError(KdscaleError):
    """A run folder cannot be used as requested (finished, unfinished, of another recipe, empty)."""


class DivergedError(KdscaleError):
    """The loss is not finite."""


class PrunedError(KdscaleError):
    """A sweep has given up a run that falls behind; its state is saved."""


class LaunchError(KdscaleError):
    """The processes were started in a way that cannot work."""


class MainProcessError(KdscaleError):
    """The main process has stopped, and has printed the reason."""


class StorageError(KdscaleError, OSError):
    """The disk is full, read-only or not permitted."""

    def __str__(self) -> str:
        """Undo the (errno, strerror) formatting of OSError."""
        return str(self.args[0])


class UnsafePathError(KdscaleError):
    """A file of a folder is a link, a pipe or a device, or its path leads out of the folder."""


class DeviceMemoryError(KdscaleError):
    """The device is out of memory."""


class PeerLostError(KdscaleError):
    """Another process of the launch has ended, and has printed the reason."""

    exit_code = 76  # EX_PROTOCOL of sysexits.h: it is the other one's failure


class Interrupted(KdscaleError):  # noqa: N818  (not a failure: the user requested it)
    """Ctrl-C, after the state was saved."""

    exit_code = 130


class Stopped(Interrupted):
    """SIGTERM, SIGUSR1 or SIGHUP, after the state was saved: the machine or terminal is gone."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on from here
