"""Encodings of targets: the arrays of each, as a cache stores them.

`kdscale/targets/codecs.py` computes them from logits, and back. Imports neither torch nor NumPy:
`kdscale cache info` reads a manifest without them. `cache/README.md` is the specification.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, prod
from typing import Any, ClassVar

_BYTES = {"uint8": 1, "uint16": 2, "float16": 2, "uint32": 4, "float32": 4}


@dataclass(frozen=True, slots=True)
class TargetArray:
    """One array of an encoding: the part of a target that it stores."""

    dtype: str
    fill_value: float
    """Value that an absent row reads as; no target has a row of nothing else."""
    shape: tuple[int, ...] = ()
    """Shape of one target's part."""
    dimensions: tuple[str, ...] = ()
    """Name of each dimension of `shape`."""

    @property
    def bytes_per_target(self) -> int:
        """Bytes of one target's part, before compression."""
        return _BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Encoding(ABC):
    """How targets are stored, with all settings of the encoding."""

    name: ClassVar[str]
    """Name in recipes and manifests."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Fields of a manifest that the encoding has beside `num_classes`."""
    all_classes: ClassVar[bool] = True
    """Whether logits of all classes can be decoded."""
    has_logits: ClassVar[bool] = True
    """Whether logits of any class can be decoded."""
    uses_head: ClassVar[bool] = False
    """Whether the teacher's linear head is stored once, to compute logits."""
    rounding: ClassVar[float]
    """Largest error of a decoded logit, relative to the largest logit of its row.

    Of integers half a step, where the smallest logit is as far below 0 as the largest above. Values
    of an embedding are rounded by up to 5e-4 of themselves each; four times that, since terms of a
    logit may cancel: 2.4e-4 was measured on a CIFAR-10 teacher.
    """

    num_classes: int

    @property
    @abstractmethod
    def arrays(self) -> dict[str, TargetArray]:
        """Return the arrays by name, in the order in which they are committed."""

    def fields(self) -> dict[str, Any]:
        """Return the settings, other than the number of classes, as fields of a manifest."""
        values = {name: getattr(self, name) for name in self.settings}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @property
    def bytes_per_target(self) -> int:
        """Stored bytes of one sample's target in one view, before compression."""
        return sum(array.bytes_per_target for array in self.arrays.values())


class _Floats(Encoding):
    """Logits of all classes as floats."""

    __slots__ = ()

    @property
    def arrays(self) -> dict[str, TargetArray]:
        return {"logits": TargetArray(self.name, nan, (self.num_classes,), ("class",))}


class Float32(_Floats):
    """Logits of all classes, as computed."""

    __slots__ = ()
    name, rounding = "float32", 0.0


class Float16(_Floats):
    """Logits of all classes, rounded to half precision."""

    __slots__ = ()
    name, rounding = "float16", 5e-4


class _Integers(Encoding):
    """Logits of all classes as codes of equal steps, with a scale and an offset for each row."""

    __slots__ = ()
    bits: ClassVar[int]
    """Bits of a code; the smallest logit of a row has code 0."""

    @property
    def arrays(self) -> dict[str, TargetArray]:
        classes = self.num_classes
        pairs = ((classes,), ("class",)) if self.bits == 8 else ((-(-classes // 2),), ("pair",))
        return {
            "codes": TargetArray("uint8", 255, *pairs),
            "scale": TargetArray("float32", nan),
            "offset": TargetArray("float32", nan),
        }


class Int8(_Integers):
    """Codes of 8 bits."""

    __slots__ = ()
    name, bits, rounding = "int8", 8, 1 / 255


class Int4(_Integers):
    """Codes of 4 bits, two in a byte."""

    __slots__ = ()
    name, bits, rounding = "int4", 4, 1 / 15


@dataclass(frozen=True, slots=True)
class TopK(Encoding):
    """The largest logits, and the log-sum-exp of the others at some temperatures."""

    name, rounding = "topk", 5e-4
    settings = ("top_k", "temperatures")
    all_classes = False

    top_k: int
    """Classes whose logits are stored; fewer than `num_classes`."""
    temperatures: tuple[float, ...]
    """Temperatures at which the log-sum-exp of the other classes is stored, ascending."""

    @property
    def arrays(self) -> dict[str, TargetArray]:
        """Return class indices, logits, and the tail's log-sum-exp at each temperature."""
        bits = 8 if self.num_classes < 1 << 8 else 16 if self.num_classes < 1 << 16 else 32
        grid = len(self.temperatures)
        return {
            "ids": TargetArray(f"uint{bits}", (1 << bits) - 1, (self.top_k,), ("rank",)),
            "logits": TargetArray("float16", nan, (self.top_k,), ("rank",)),
            "tails": TargetArray("float32", nan, (grid,), ("temperature",)),
        }


@dataclass(frozen=True, slots=True)
class Embedding(Encoding):
    """The input of the teacher's linear head, which is stored once."""

    name, rounding = "embedding", 2e-3
    settings = ("embedding_size",)
    uses_head = True

    embedding_size: int | None = None
    """Values before the head; None if the teacher is not known yet."""

    @property
    def arrays(self) -> dict[str, TargetArray]:
        """Return the one array."""
        return {"embedding": TargetArray("float16", nan, (self.embedding_size or 0,), ("value",))}


class FeaturesOnly(Encoding):
    """No logits: the cache stores features alone, as of a teacher without a classifier."""

    __slots__ = ()
    name, rounding, all_classes, has_logits = "none", 0.0, False, False

    @property
    def arrays(self) -> dict[str, TargetArray]:
        """Return no arrays."""
        return {}


ENCODINGS: dict[str, type[Encoding]] = {
    one.name: one for one in (Float32, Float16, Int8, Int4, TopK, Embedding, FeaturesOnly)
}
"""Encodings by name."""

FULL_ENCODINGS = "'float16', 'int8' or 'int4'"
"""Names to propose where logits of all classes are needed."""


def create_encoding(
    name: str,
    num_classes: int,
    *,
    top_k: int | None = None,
    temperatures: Sequence[float] = (),
    embedding_size: int | None = None,
) -> Encoding:
    """Create an encoding from the fields of a manifest; those that it does not have are ignored."""
    fields = {
        "top_k": top_k,
        "temperatures": tuple(temperatures),
        "embedding_size": embedding_size,
    }
    kind = ENCODINGS[name]
    return kind(num_classes, **{field: fields[field] for field in kind.settings})
