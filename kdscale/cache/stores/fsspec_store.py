"""The store of a cache wherever fsspec reaches: `sftp://`, `smb://`, `memory://` and many more."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

from kdscale.cache.stores.object_keys import check_key
from kdscale.errors import ConfigError, KdscaleError, StorageError


class FsspecStore:
    """The store of a cache below a URL that fsspec knows.

    What can be promised is what the file system behind it does. One that renames gets each object
    under a temporary name first, so that a kill leaves no half of one; on the others it is there
    when its last byte is. `create` asks for an exclusive file: where the file system has none, it
    looks first, and two builders may both be told that they were the first.
    """

    requests = 1  # few file systems say whether several threads may ask

    def __init__(self, url: str) -> None:
        self._url = url
        self._files, self._root = _open(url)

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    def read(self, key: str, sound: Callable[[bytes], bool] | None = None) -> bytes:
        """All bytes of an object."""
        try:
            return bytes(self._files.cat_file(self._path(key)))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{self._url}/{key}") from error
        except Exception as error:  # each file system has its own
            self._fail("read", key, error)

    def write(self, key: str, data: bytes, check: Callable[[], None] | None = None) -> None:
        """Through a temporary name where the file system renames."""
        path = self._path(key)
        if not _renames(self._files):
            if check is not None:
                check()
            self._put(key, path, data)
            return
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name}.{os.urandom(4).hex()}.tmp"
        try:
            self._put(key, temporary, data)
            if check is not None:
                check()
            self._rename(key, temporary, path)
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(temporary)
            raise

    def create(self, key: str, data: bytes) -> bool:
        """As exclusive as the file system can."""
        path = self._path(key)
        if self.size(key) is not None:
            return False
        try:
            self._make_folder(path)
            self._write_new(path, data)
        except FileExistsError:
            return False
        except Exception as error:
            if self.size(key) is not None:  # by another one, just now
                return False
            self._fail("write", key, error)
        return True

    def _write_new(self, path: str, data: bytes) -> None:
        """In exclusive mode: fsspec's own `mode="create"` looks and writes in two steps."""
        try:
            file = self._files.open(path, "xb")
        except (NotImplementedError, ValueError):  # it knows no such mode
            self._files.pipe_file(path, data, mode="create")
            return
        with file:
            file.write(data)

    def overwrite(self, key: str, data: bytes) -> None:
        """In place."""
        self._put(key, self._path(key), data)

    def keys(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Every key below a folder."""
        root = self._path(folder) if folder else self._root
        try:
            self._files.invalidate_cache()
            found = self._files.find(root, detail=True)
        except FileNotFoundError:
            return
        except Exception as error:
            self._fail("list", folder, error)
        if root in found:
            raise NotADirectoryError(self._url)
        above = len(self._root.rstrip("/")) + 1
        for path, about in found.items():
            yield check_key(path[above:], self._url), int(about.get("size") or 0)

    def size(self, key: str) -> int | None:
        """Bytes of an object."""
        try:
            self._files.invalidate_cache()
            about = self._files.info(self._path(key))
        except FileNotFoundError:
            return None
        except Exception as error:
            self._fail("read", key, error)
        return int(about["size"] or 0) if about["type"] == "file" else None

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove an object."""
        try:
            self._files.rm_file(self._path(key))
        except FileNotFoundError:
            return
        except Exception as error:
            if self.size(key) is not None:
                self._fail("remove", key, error)

    def prune(self, folder: str) -> None:
        """Remove the folder, and those in it, if nothing else is in them."""
        with suppress(Exception):
            self._files.invalidate_cache()
            for place, _, _ in reversed(list(self._files.walk(self._path(folder)))):
                with suppress(Exception):
                    self._files.rmdir(place)

    def tidy(self, written: str, folder: str = "") -> None:
        """Temporary files stay: whose they are cannot be seen from here."""

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{check_key(key, self._url)}"

    def _put(self, key: str, path: str, data: bytes) -> None:
        try:
            self._make_folder(path)
            self._files.pipe_file(path, data)
        except Exception as error:
            self._fail("write", key, error)

    def _make_folder(self, path: str) -> None:
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _rename(self, key: str, temporary: str, path: str) -> None:
        try:
            try:
                self._files.mv(temporary, path)
            except OSError:  # one that does not rename over what is there
                if self.size(key) is None:
                    raise
                self._files.rm_file(path)
                self._files.mv(temporary, path)
        except Exception as error:
            self._fail("write", key, error)

    def _fail(self, verb: str, key: str, error: Exception) -> NoReturn:
        if isinstance(error, KdscaleError):
            raise error
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0][:300]
        raise StorageError(
            f"cannot {verb} {self._url}/{key} ({reason}): check the URL, the network and the "
            "credentials, then run the same command again; what is finished is kept"
        ) from error


def _renames(files: Any) -> bool:
    """Whether moving is more than copying and removing, which fsspec does for all that cannot."""
    from fsspec import AbstractFileSystem

    return type(files).mv is not AbstractFileSystem.mv


def _open(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError(
            f"{url} needs the package fsspec: pip install 'kdscale[stores]'"
        ) from None
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url} cannot be opened: {error}") from None
    except ValueError as error:
        raise ConfigError(
            f"{url} cannot be opened ({error}): s3://, gs://, az://, or a URL that fsspec knows is "
            "wanted, or a folder"
        ) from None
    except Exception as error:
        raise StorageError(
            f"{url} cannot be opened ({str(error).strip() or type(error).__name__}): check the "
            "URL, the network and the credentials"
        ) from error
    return files, root
