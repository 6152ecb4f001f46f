"""Images of several sizes: they stay encoded, and each is decoded when it is used."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kdscale.data.decode import decode_one
from kdscale.data.encoded_split import EncodedSplit
from kdscale.data.headers import Headers
from kdscale.documents import DAMAGE, parse_as, read_object, write_object
from kdscale.errors import KdscaleError

log = logging.getLogger(__name__)


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
    """Return the headers that `write_note` wrote; None where there is no sound note."""
    try:
        headers = parse_as(Headers, read_object(path, root=path.parent))
        if headers.channels not in (1, 3) or not all(0 < a <= b for a, b in headers.sizes):
            raise ValueError("its numbers are out of range")
    except FileNotFoundError:
        return None
    except (KdscaleError, *DAMAGE) as error:
        log.warning("%s is damaged (%s): reading the headers of the images again", path, error)
        return None
    return headers


def write_note(path: Path, headers: Headers) -> None:
    """Write what was read from the headers: those of a million images take a minute."""
    write_object(path, asdict(headers))
