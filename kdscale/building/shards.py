"""Building shards: images -> views -> teacher -> encoded -> written, in the background."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from kdscale.cache.layout import claim_name
from kdscale.cache.lease import Leases
from kdscale.cache.writer import ShardWriter
from kdscale.data.loader import Batch, DeviceImages
from kdscale.data.views.batch_plan import BatchPlan, PlannedBatches
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ClaimLostError
from kdscale.target_sources.stored_encoding import encoding_of
from kdscale.targets import encode, encode_features
from kdscale.teacher.checks import check_finite_logits
from kdscale.teacher.frozen_teacher import OomSafeTeacher, TeacherOutput, concatenate

log = logging.getLogger(__name__)

_PENDING = 2  # shards waiting to be written: enough to hide the disk, little memory


class ShardQueue:
    """The shards of a cache that are still missing, for one of any number of builders.

    Args:
        writer: of the cache.
        claims: this builder's.
        order: all (view, shard) pairs, in the order in which they are wanted.
        process_index, num_processes: who we are among those of one launch: each begins with shards
            of its own, so that they seldom meet.
    """

    def __init__(
        self,
        writer: ShardWriter,
        claims: Leases,
        order: Iterable[tuple[int, int]],
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self._writer, self._claims = writer, claims
        committed = writer.committed()
        for name, reason in writer.refused.items() if process_index == 0 else ():
            log.warning("%s is built anew: %s", name, reason)
        missing = [one for one in order if not committed[one]]
        turns = [(process_index + turn) % num_processes for turn in range(num_processes)]
        self.missing = [one for turn in turns for one in missing[turn::num_processes]]
        """(view, shard) pairs that were not committed when last looked at."""

    def claim_each(self) -> Iterator[tuple[int, int]]:
        """Claim one shard after another, as they are asked for.

        Ends when nothing is left to claim now; what is `missing` then is being built.
        """
        for view, shard in list(self.missing):
            if self._claims.claim(claim_name(view, shard)):
                if not self._writer.is_committed(view, shard):
                    yield view, shard
                    continue
                self._claims.release(claim_name(view, shard))

    def look(self) -> None:
        """Look which of the missing shards are committed by now, by whomever."""
        self.missing = [one for one in self.missing if not self._writer.is_committed(*one)]


class ShardBuilder:
    """Asks the teacher about whole shards and commits them in the background.

    Teacher batches never cross a chunk, so a cache's content does not depend on who builds what,
    nor on how many chunks share an object.
    With `claims`, a shard's claim is released once it is committed.
    `between_chunks` is called within a shard of several chunks, and may raise to give it up.
    """

    def __init__(
        self,
        images: DeviceImages,
        pipeline: Pipeline,
        teacher: OomSafeTeacher,
        writer: ShardWriter,
        claims: Leases | None = None,
        between_chunks: Callable[[], None] = lambda: None,
    ) -> None:
        self._between_chunks = between_chunks
        self._images, self._pipeline = images, pipeline
        self._teacher, self._writer, self._claims = teacher, writer, claims
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Future[None]] = deque()

    def build(self, view: int, shard: int) -> None:
        """Build one shard; an error of an earlier shard's writing is raised here or by `close`."""
        for _ in self.build_each([(view, shard)]):
            pass

    def build_each(self, todo: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Build one (view, shard) after another, and say so after each; errors as of `build`.

        The images of the next shard are prepared while this one's are asked about, so `todo` is
        asked for it then.
        """
        begun: deque[tuple[int, int]] = deque()

        def plans() -> Iterator[BatchPlan]:
            for view, shard in todo:
                begun.append((view, shard))
                yield from self._plan(view, shard)

        shown = self._images.render_each(self._pipeline, plans())
        began = perf_counter()
        for first in shown:
            view, shard = begun.popleft()
            self._build(view, shard, chain([first], shown), began)
            yield view, shard
            began = perf_counter()

    def _plan(self, view: int, shard: int) -> PlannedBatches:
        """Plan a shard's batches: chunk by chunk, of at most the teacher's batch size."""
        manifest = self._writer.manifest
        index = torch.arange(*manifest.shard_range(shard))
        chunks = index.split(manifest.rows_together)
        sizes = [len(one) for chunk in chunks for one in chunk.split(self._teacher.batch_size)]
        return self._pipeline.plan(view, index, sizes, self._images.device)

    def _build(self, view: int, shard: int, shown: Iterator[Batch], began: float) -> None:
        manifest, encoded, digests = self._writer.manifest, [], []
        start, stop = manifest.shard_range(shard)
        for first in range(start, stop, manifest.rows_together):
            if first > start:
                self._between_chunks()
            last = min(first + manifest.rows_together, stop)
            outputs: list[TeacherOutput] = []
            done = first
            while done < last:
                pixels = next(shown).pixels
                outputs.append(_compact(self._teacher.outputs(pixels)))
                digests.append(digest(pixels))
                done += len(pixels)
            # Chunk by chunk: of a large object only what is stored stays in memory.
            encoded.append(self._thread.submit(self._encode, concatenate(outputs), view, first))
            if len(encoded) > _PENDING:
                encoded[-_PENDING - 1].exception()  # waits for it; `_write` raises what it raised
        seen, seconds = torch.cat(digests).cpu(), perf_counter() - began
        self._pending.append(self._thread.submit(self._write, view, shard, encoded, seen, seconds))
        self.wait(_PENDING)

    def _encode(self, output: TeacherOutput, view: int, first: int) -> dict[str, np.ndarray]:
        logits, teacher = output.logits_BC, self._teacher.teacher
        if not torch.isfinite(logits).all():
            index = torch.arange(first, first + len(logits))
            check_finite_logits(logits, index, teacher.precision, f"in view {view} ")
        encoding = encoding_of(self._writer.manifest, teacher.head)
        values = encode(logits, encoding, output.embedding_BD)
        return values | encode_features(output.features)

    def _write(
        self,
        view: int,
        shard: int,
        encoded: Sequence[Future[dict[str, np.ndarray]]],
        digests: Tensor,
        seconds: float,
    ) -> None:
        """Commit a shard; its claim is released whatever comes of it."""
        name, claims = claim_name(view, shard), self._claims
        check = None if claims is None else partial(claims.check, name)
        try:
            chunks = [one.result() for one in encoded]
            values = {array: np.concatenate([one[array] for one in chunks]) for array in chunks[0]}
            # Stored plus one, so that an absent chunk, which reads as 0, is told from a digest.
            values["digests"] = (digests + 1).numpy().astype("uint64")
            self._writer.write(view, shard, values, seconds, check)
        except ClaimLostError:
            log.warning("%s: this builder stood still too long, another one has it", name)
        finally:
            if claims is not None:
                claims.release(name)

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


def _compact(outputs: TeacherOutput) -> TeacherOutput:
    """Features as they will be stored, and off the device: those of a shard may be gigabytes."""
    features = {name: one.half().cpu() for name, one in outputs.features.items()}
    return replace(outputs, features=features)
