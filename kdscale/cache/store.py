"""The Zarr store that caches are written to."""

import asyncio
import zlib
from collections.abc import Callable
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from kdscale.durable import write_durably


class DurableStore(LocalStore):
    """A local Zarr store whose objects are written whole or not at all, and are remembered."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: dict[str, int] = {}
        """CRC-32 of each object written through this store, by key."""
        self.check: Callable[[], None] | None = None
        """Called just before an object is put in its place; raises to prevent it."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object durably."""
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """The same, for versions of Zarr that write without an event loop."""
        data = value.to_bytes()
        self.written[key] = crc(data)
        write_durably(self.root / key, data, self.check)


def crc(data: bytes) -> int:
    """CRC-32 of stored bytes, as commit records keep it."""
    return zlib.crc32(data)
