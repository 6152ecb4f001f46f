"""Building shards: images -> views -> teacher -> encoded -> written, in the background."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

import torch
from torch import Tensor

from kdscale.cache.writer import ShardWriter
from kdscale.data.loader import Batch, Images
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.engine.encoding import encoding_of
from kdscale.engine.teacher import SizedBatches
from kdscale.targets import encode

_PENDING = 2  # shards waiting to be written: enough to hide the disk, little memory


class ShardBuilder:
    """Asks the teacher about whole shards and commits them in the background.

    Teacher batches never cross a shard, so a cache's content does not depend on who builds what.
    """

    def __init__(
        self, images: Images, pipeline: Pipeline, teacher: SizedBatches, writer: ShardWriter
    ) -> None:
        self._images, self._pipeline = images, pipeline
        self._teacher, self._writer = teacher, writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Future[None]] = deque()

    def build(self, view: int, shard: int) -> None:
        """Build one shard; an error of an earlier shard's writing is raised here or by `close`."""
        for _ in self.build_each([(view, shard)]):
            pass

    def build_each(self, todo: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Build one (view, shard) after another, and say so after each; errors as of `build`.

        The images of the next shard are prepared while this one's are asked about.
        """
        wanted = ((view, index) for view, shard in todo for index in self._batches(shard))
        shown = self._images.show_each(self._pipeline, wanted)
        for view, shard in todo:
            self._build(view, shard, shown)
            yield view, shard

    def _batches(self, shard: int) -> Iterator[Tensor]:
        samples = torch.arange(*self._writer.manifest.shard_range(shard))
        yield from samples.split(self._teacher.batch_size)

    def _build(self, view: int, shard: int, shown: Iterator[Batch]) -> None:
        began = perf_counter()
        logits, digests, done = [], [], 0
        start, stop = self._writer.manifest.shard_range(shard)
        while done < stop - start:
            pixels = next(shown).pixels
            logits.append(self._teacher.logits(pixels))
            digests.append(digest(pixels))
            done += len(pixels)
        answers, seen = torch.cat(logits), torch.cat(digests).cpu()
        seconds = perf_counter() - began
        pending = self._thread.submit(self._write, view, shard, answers, seen, seconds)
        self._pending.append(pending)
        self.wait(_PENDING)

    def _write(
        self, view: int, shard: int, logits: Tensor, digests: Tensor, seconds: float
    ) -> None:
        values = encode(logits, encoding_of(self._writer.manifest))
        # Stored plus one, so that an absent chunk, which reads as 0, is told from a digest.
        values["digests"] = (digests + 1).numpy().astype("uint64")
        self._writer.write(view, shard, values, seconds)

    def wait(self, allowed: int = 0) -> None:
        """Wait until at most `allowed` shards are still being written."""
        while len(self._pending) > allowed:
            self._pending.popleft().result()

    def close(self) -> None:
        """Finish all writing."""
        try:
            self.wait()
        finally:
            self._thread.shutdown(wait=True)
