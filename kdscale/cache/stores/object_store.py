"""The store of a cache in an object store: S3, Google Cloud Storage, Azure, by obstore.

Credentials, regions and endpoints are those of the environment, as the cloud's own tools read it:
`AWS_*`, `GOOGLE_*`, `AZURE_*`. Servers that are busy, and connections that break, are tried again.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import quote

from kdscale.errors import ConfigError, StorageError
from kdscale.regular_files import check_key

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as Client

_RETRIES = 8
"""With pauses that double from 0.1 s, up to 10 s: about 20 s until a store counts as down."""
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=0.1), timedelta(seconds=10)
_TIMEOUT = timedelta(minutes=2)  # of one request with its bytes
_ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_ENDPOINT",
              "AZURE_STORAGE_ENDPOINT")  # fmt: skip

_REQUESTS = 16
"""Requests at once: an answer comes tens of milliseconds late, whatever its size."""
_IN_HAND_BYTES = 64 << 20
"""Most bytes that are requested concurrently, before compression."""

Answer = TypeVar("Answer")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ObjectStore:
    """The store of a cache below a URL of an object store.

    One PUT puts an object in its place, whole or not at all, and only where none is for `create`:
    the server decides.
    """

    def __init__(self, url: str, client: "Client") -> None:
        self._url, self._client = url, client

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    def each(
        self, request: Callable[[Item], Result], items: Iterable[Item], item_bytes: int = 1
    ) -> Iterator[Result]:
        """Yield the result of `request` for each item in order, from several threads."""
        threads = min(_REQUESTS, max(1, _IN_HAND_BYTES // item_bytes))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="requests")
        requested: deque[Future[Result]] = deque()
        try:
            for item in items:
                requested.append(pool.submit(request, item))
                if len(requested) == threads:
                    yield requested.popleft().result()
            while requested:
                yield requested.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, key: str, sound: Callable[[bytes], bool] | None = None) -> bytes:
        """All bytes of an object."""
        import obstore

        return self._ask("read", key, lambda: bytes(obstore.get(self._client, key).bytes()))

    def write(self, key: str, data: bytes, check: Callable[[], None] | None = None) -> None:
        """One PUT; `check` is called just before."""
        if check is not None:
            check()
        self._put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """A PUT on the condition that nothing is there.

        An answer may be lost on its way after the object was created. Bytes that are there already
        are taken for those of this attempt, so they should name their writer.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def attempt() -> bool:
            try:
                obstore.put(self._client, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        try:
            created = self._change(key, attempt)
        except StorageError:  # requests with a condition are not tried again where a line breaks
            created = self._change(key, attempt)
        if created:
            return True
        try:
            return self.read(key) == data
        except FileNotFoundError:  # removed just now
            return False

    def overwrite(self, key: str, data: bytes) -> None:
        """One PUT."""
        self._put(key, data)

    def keys(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Every key below a folder, page by page."""
        import obstore

        pages = iter(obstore.list(self._client, prefix=folder or None))
        while page := self._ask("list", folder, lambda: next(pages, None)):
            yield from ((check_key(entry["path"], self._url), entry["size"]) for entry in page)

    def size(self, key: str) -> int | None:
        """Bytes of an object."""
        import obstore

        try:
            return int(self._ask("read", key, lambda: obstore.head(self._client, key))["size"])
        except FileNotFoundError:
            return None

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove an object."""
        import obstore

        try:
            self._ask("remove", key, lambda: obstore.delete(self._client, key))
        except FileNotFoundError:
            return

    def prune(self, folder: str) -> None:
        """There are no folders."""

    def tidy(self, written: str, folder: str = "") -> None:
        """Killed writers leave nothing."""

    def _put(self, key: str, data: bytes) -> None:
        import obstore

        self._change(
            key, lambda: obstore.put(self._client, key, data, mode="overwrite", use_multipart=False)
        )

    def _change(self, key: str, request: Callable[[], Answer]) -> Answer:
        try:
            return self._ask("write", key, request)
        except FileNotFoundError as error:  # what is not there can only be the bucket
            self._fail("write", key, error)

    def _ask(self, verb: str, key: str, request: Callable[[], Answer]) -> Answer:
        from obstore.exceptions import BaseError

        if verb != "list":
            check_key(key, self._url)
        try:
            return request()
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
                self._fail(verb, key, error)
            raise FileNotFoundError(f"{self._url}/{key}") from None
        except (BaseError, OSError, ValueError) as error:
            self._fail(verb, key, error)

    def _fail(self, verb: str, key: str, error: Exception) -> NoReturn:
        raise StorageError(
            f"cannot {verb} {self._url}/{key} ({_reason(error)}): check the URL, the network and "
            "the credentials in the environment, then run the same command again; what is finished "
            "is kept"
        ) from None


def _reason(error: Exception) -> str:
    """Return a server's own words from its client's error, which is pages long."""
    text = str(error)
    found = re.search(r"<Code>(.*?)</Code>\s*(?:<Message>(.*?)</Message>)?", text, re.DOTALL)
    if found is not None:
        return ": ".join(part for part in found.groups() if part)
    first = text.partition("\n")[0].strip()
    status = re.search(r"status code: (.*?):? *$", first)
    reason = (
        status[1] if status else re.sub(r"^.*max_retries.*? - |^Generic \w+ error: ", "", first)
    )
    return reason[:300] or type(error).__name__


def open_objects(url: str) -> ObjectStore:
    """The store at a URL.

    Raises:
        ConfigError: obstore is not installed, or the URL is none.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
    return ObjectStore(url, _connect(url, tuple(sorted(settings.items()))))


@lru_cache(maxsize=16)  # connections stay open
def _connect(url: str, environment: tuple[tuple[str, str], ...]) -> "Client":
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise ConfigError(
            f"{url} needs the package obstore: pip install 'kdscale[stores]'"
        ) from None
    settings = dict(environment)
    plain = any(settings.get(name, "").startswith("http://") for name in _ENDPOINTS)
    options: ClientConfig = {"allow_http": plain, "timeout": _TIMEOUT}
    retry: RetryConfig = {
        "max_retries": _RETRIES,
        "backoff": {"init_backoff": _FIRST_PAUSE, "max_backoff": _LONGEST_PAUSE, "base": 2},
    }
    scheme, _, place = url.partition("://")
    address = f"{scheme}://{quote(place, safe='/@:')}"
    try:
        opened: Client = from_url(address, client_options=options, retry_config=retry)
        return opened
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"{url} cannot be opened ({_reason(error)}): s3://BUCKET/PATH, gs://BUCKET/PATH or "
            "az://CONTAINER/PATH are wanted, and the usual variables for what they need"
        ) from None
