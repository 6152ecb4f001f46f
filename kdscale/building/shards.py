"""Building shards: images -> views -> teacher -> encoded -> written, in the background."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from time import perf_counter

import numpy as np
import torch

from kdscale.building.part import WHOLE, Part, Shard
from kdscale.cache.layout import claim_name, parse_shard_name
from kdscale.cache.lease import Leases
from kdscale.cache.writer import ShardWriter
from kdscale.data.loader import Batch, DeviceImages
from kdscale.data.views.batch_plan import BatchPlan, PlannedBatches
from kdscale.data.views.digest import digest
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ClaimLostError
from kdscale.targets import create_codec, encode_features
from kdscale.teacher.frozen_teacher import OomSafeTeacher, TeacherOutput, concatenate
from kdscale.teacher.output_checks import check_finite
from kdscale.transfers import HostCopy, SideStream

log = logging.getLogger(__name__)

_AHEAD = 32
"""Shards that a builder looks at together once it meets another builder's."""
_PENDING = 2  # shards waiting to be written: enough to hide the disk, little memory


class ShardQueue:
    """The shards of a cache that are still missing, for one of any number of builders.

    A builder first builds its own part, then takes over what others left: shards of theirs that
    are neither committed nor under a lease of a builder that lives.

    Args:
        writer: of the cache.
        leases: this builder's.
        order: all (view, shard) pairs, those first that a student needs first.
        part: what this builder begins with.
    """

    def __init__(
        self,
        writer: ShardWriter,
        leases: Leases,
        order: Sequence[Shard],
        part: Part = WHOLE,
    ) -> None:
        self._writer, self._leases, self._part = writer, leases, part
        committed = writer.committed()
        self._refused = {one for one in map(parse_shard_name, writer.refused) if one is not None}
        self.missing = [one for one in order if not committed[one]]
        """(view, shard) pairs that were not committed at the last refresh."""
        own = part.select(order)
        for name, reason in writer.refused.items():
            if parse_shard_name(name) in own or (part.index == 0 and part.count > 1):
                log.warning("%s is built anew: %s", name, reason)
        self._first = [one for one in self.missing if one in own]

    def claim_each(self) -> Iterator[Shard]:
        """Take a lease on one missing shard after another, and yield those that were free.

        The first call goes through this builder's part, each later one through what nobody builds,
        its own share of that first. Whether a shard is committed is read before its lease is
        requested, since that is one request, and once more under the lease.
        """
        candidates = deque(self._candidates())
        while candidates:
            view, shard = candidates.popleft()
            name = claim_name(view, shard)
            if self._writer.records.is_committed(view, shard) or not self._leases.claim(name):
                ahead = [candidates.popleft() for _ in range(min(_AHEAD, len(candidates)))]
                candidates.extendleft(reversed(self._free(ahead)))
            elif self._writer.records.is_committed(view, shard):
                self._leases.release(name)
            else:
                yield view, shard

    def _candidates(self) -> list[Shard]:
        own, self._first = self._first, []
        if own:
            return own
        free, part = self._free(self.missing, listed=True), self._part
        shares = [free[(part.index + k) % part.count :: part.count] for k in range(part.count)]
        return [one for share in shares for one in share]

    def _free(self, shards: Sequence[Shard], *, listed: bool = False) -> list[Shard]:
        """Return the shards that are neither committed nor under a living builder's lease.

        Args:
            shards: (view, shard) pairs.
            listed: whether those that are committed are already left out.
        """
        present = () if listed else self._present(shards)
        names = {claim_name(*one): one for one in shards if one not in present}
        return [names[name] for name in self._leases.available(names)]

    def _present(self, shards: Sequence[Shard]) -> set[Shard]:
        """Return which shards are committed, in the fewest requests."""
        present = self._writer.records.present_among(shards)
        for one in self._refused & present:  # a record is there, and may still be the refused one
            if not self._writer.records.is_committed(*one):
                present.discard(one)
        return present

    def refresh(self) -> None:
        """Drop from `missing` what is committed by now."""
        present = self._present(self.missing)
        self.missing = [one for one in self.missing if one not in present]


class ShardBuilder:
    """Runs the teacher on whole shards and commits them in the background.

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
        self._stream, self._computed = SideStream(images.device), 0.0

    def build(self, view: int, shard: int) -> None:
        """Build one shard; an error of an earlier shard's writing is raised here or by `close`."""
        for _ in self.build_each([(view, shard)]):
            pass

    def build_each(self, todo: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Build one (view, shard) after another, and yield each; errors as of `build`.

        The images of the next shard are prepared during the forward passes of this one, so the next
        item of `todo` is taken then.
        """
        begun: deque[tuple[int, int]] = deque()

        def plans() -> Iterator[BatchPlan]:
            for view, shard in todo:
                begun.append((view, shard))
                yield from self._plan(view, shard)

        batches = self._images.render_each(self._pipeline, plans())
        began = perf_counter()
        for first in batches:
            view, shard = begun.popleft()
            self._build(view, shard, chain([first], batches), began)
            yield view, shard
            began = perf_counter()

    def _plan(self, view: int, shard: int) -> PlannedBatches:
        """Plan a shard's batches: chunk by chunk, of at most the teacher's batch size."""
        manifest = self._writer.manifest
        index = torch.arange(*manifest.shard_range(shard))
        chunks = index.split(manifest.rows_together)
        sizes = [len(one) for chunk in chunks for one in chunk.split(self._teacher.batch_size)]
        return self._pipeline.plan(view, index, sizes, self._images.device)

    def _build(self, view: int, shard: int, batches: Iterator[Batch], began: float) -> None:
        manifest, encoded, digests = self._writer.manifest, [], []
        start, stop = manifest.shard_range(shard)
        for first in range(start, stop, manifest.rows_together):
            if first > start:
                self._between_chunks()
            last = min(first + manifest.rows_together, stop)
            outputs: list[TeacherOutput] = []
            features: list[dict[str, HostCopy]] = []
            done = first
            while done < last:
                pixels = next(batches).pixels
                output = self._teacher.outputs(pixels)
                if self._teacher.teacher.headless:  # what is stored of it is among the features
                    output = replace(output, output=output.output[:, :0])
                outputs.append(replace(output, features={}))
                # Off the device as they come, as they are stored: a shard's may be gigabytes.
                features.append(
                    {name: HostCopy(one.half()) for name, one in output.features.items()}
                )
                digests.append(digest(pixels))
                done += len(pixels)
            # Chunk by chunk: of a large object only what is stored stays in memory.
            given = concatenate(outputs), features, self._stream.moment()
            encoded.append(self._thread.submit(self._encode, *given, view, first))
            if len(encoded) > _PENDING:
                encoded[-_PENDING - 1].exception()  # waits for it; `_write` raises what it raised
        timed = _TimedDigests(HostCopy(torch.cat(digests)), began)
        self._pending.append(self._thread.submit(self._write, view, shard, encoded, timed))
        self.wait(_PENDING)

    def _encode(
        self,
        output: TeacherOutput,
        features: Sequence[Mapping[str, HostCopy]],
        moment: "torch.cuda.Event | None",
        view: int,
        first: int,
    ) -> dict[str, np.ndarray]:
        """Check and encode a chunk's outputs beside the teacher's next forward passes."""
        given, teacher = output.output, self._teacher.teacher
        with self._stream.after(moment):
            if not torch.isfinite(given).all():
                index = torch.arange(first, first + len(given))
                check_finite(given, index, teacher, f"in view {view} ")
            codec = create_codec(self._writer.manifest.target_encoding, teacher.head)
            values = codec.encode(given, output.embedding_BD)
        names = features[0]
        whole = {name: torch.cat([one[name].get() for one in features]) for name in names}
        return values | encode_features(whole)

    def _write(
        self,
        view: int,
        shard: int,
        encoded: Sequence[Future[dict[str, np.ndarray]]],
        digests: "_TimedDigests",
    ) -> None:
        """Commit a shard; its claim is released whatever comes of it."""
        name, claims = claim_name(view, shard), self._claims
        check = None if claims is None else partial(claims.check, name)
        try:
            chunks = [one.result() for one in encoded]
            values = {array: np.concatenate([one[array] for one in chunks]) for array in chunks[0]}
            # Stored plus one, so that an absent chunk, which reads as 0, differs from a digest.
            values["digests"] = (digests.copy.get() + 1).numpy().astype("uint64")
            seconds, self._computed = digests.seconds_after(self._computed)
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


class _TimedDigests:
    """Digests of a shard on their way to the host, which follow all else that a device computes.

    Args:
        copy: the digests, int64 [samples].
        began: when the host began with the shard, in seconds of `perf_counter`.
    """

    def __init__(self, copy: HostCopy, began: float) -> None:
        self.copy, self._began = copy, began
        self._ended = perf_counter() if copy.ready else None  # None: the device is still at it

    def seconds_after(self, earlier: float) -> tuple[float, float]:
        """Return the seconds of this shard alone, and when it was computed.

        Args:
            earlier: when the shard before this one was computed: a device has a queue.
        """
        ended = perf_counter() if self._ended is None else self._ended
        return ended - max(self._began, earlier), ended
