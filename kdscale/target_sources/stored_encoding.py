"""The encoding of a cache's targets, from its manifest."""

import torch

from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError
from kdscale.targets import Encoding, Head


def encoding_of(manifest: Manifest, head: Head | None = None) -> Encoding:
    """How a cache's targets are stored; with the teacher's head what is an embedding is decoded."""
    return Encoding(
        manifest.encoding,
        manifest.num_classes,
        manifest.top_k,
        tuple(manifest.temperatures),
        manifest.embedding_size,
        head,
    )


def stored_encoding(reader: CacheReader, device: torch.device | None = None) -> Encoding:
    """How a cache's targets are stored, with all it takes to decode them on a device."""
    head = reader.head()
    return encoding_of(reader.manifest, Head.parse(head).to(device or _CPU) if head else None)


_CPU = torch.device("cpu")


def check_mixing(encoding: Encoding, shown: Pipeline) -> None:
    """In fixed mode the answers to two clean images are mixed, which takes all classes.

    Raises:
        ConfigError: they are not stored.
    """
    if encoding.name == "topk" and "pairing" in shown.describe():
        raise ConfigError(
            "views.mode is 'fixed' and the views mix images, so the answers to both are mixed, "
            "which needs all classes: set cache.encoding = 'float16', 'int8' or 'int4'"
        )
