"""The view digest: proof that the student is shown the pixels that the teacher saw.

A 32-bit hash of one sample's uint8 pixels in int64 arithmetic, so it is the same on every device
and at every batch size. A change within one word of eight bytes changes the 64-bit sum for
certain; the digest keeps 32 bits of a hash of it, so about one change in 2^32 goes unseen.
`docs/views.md` specifies it, with known answers and the measured miss rate.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.data.rng import as_int64, derive_seed, mix

_KEY = derive_seed(0x76696577)  # "view"


def digest(pixels: Tensor) -> Tensor:
    """Digest of each sample.

    Args:
        pixels: uint8 [B, C, H, W].

    Returns:
        int64 [B], each in [0, 2^32).
    """
    words_BW = _words(pixels)
    keys_W = _word_keys(words_BW.shape[1], pixels.device)
    total_B = mix(keys_W, words_BW).sum(1)
    shape = derive_seed(_KEY, *pixels.shape[1:])
    return mix(total_B, as_int64(shape)) & 0xFFFFFFFF


def _words(pixels: Tensor) -> Tensor:
    """The bytes of each sample in C, H, W order as little-endian int64 words, zero-padded."""
    flat = pixels.flatten(1)
    missing = -flat.shape[1] % 8
    if missing:
        flat = F.pad(flat, (0, missing))
    flat = flat.contiguous()
    if flat.storage_offset() % 8:  # a slice that starts within a word cannot be read as words
        flat = flat.clone()
    return flat.view(torch.int64)


@lru_cache(maxsize=16)
def _word_keys(num_words: int, device: torch.device) -> Tensor:
    return mix(as_int64(_KEY), torch.arange(num_words)).to(device)
