"""Images of several sizes: they stay encoded, and each is decoded when it is shown."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kdscale.data.decode import Headers, decode_one
from kdscale.data.encoded_split import EncodedSplit
from kdscale.durable import write_durably


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The images of one split."""

    split: EncodedSplit
    headers: Headers

    def decode(self, sample: int) -> np.ndarray:
        """One image, uint8 [C, H, W], in the memory layout that its decoder gave it.

        Any number of threads may call.

        Raises:
            DataError: it cannot be decoded; its row is named.
        """
        pixels = decode_one(self.split, sample, self.headers.channels)
        # A copy, since torch warns of arrays that cannot be written to. Order "K" makes it one of
        # memory as it lies, which is faster than turning it around.
        return np.array(pixels, order="K")


def read_note(path: Path) -> Headers | None:
    """The headers that `write_note` wrote; None where there is no sound note."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        heights, widths = (tuple(map(int, span)) for span in note["sizes"])
        return Headers(int(note["channels"]), bool(note["one_size"]), (heights, widths))  # type: ignore[arg-type]  # two of two
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_note(path: Path, headers: Headers) -> None:
    """Note what the headers say: reading those of a million images takes a minute."""
    write_durably(path, json.dumps(asdict(headers), indent=2).encode())
