"""Which objects are a cache's, by their keys: of any encoding and format version."""

import re

_ARRAYS = (
    r"(?:labels|keys|head_weight|head_bias|commits|digests"
    r"|ids|logits|tails|embedding|codes|scale|offset|features\.[^/]+)"
)
"""Names of the arrays that a cache of any encoding may have."""
_OBJECT = re.compile(rf"zarr\.json|{_ARRAYS}/(?:zarr\.json|c(?:/[0-9]+)+)")
_TEMPORARY = re.compile(
    rf"\.zarr\.json\.[^/]+\.tmp|{_ARRAYS}/(?:\.zarr\.json|c(?:/[0-9]+)*/\.[0-9]+)\.[^/]+\.tmp"
)


def is_owned(key: str) -> bool:
    """Return whether a key is the manifest's, an array's, or a temporary file's of one of them."""
    return _OBJECT.fullmatch(key) is not None or _TEMPORARY.fullmatch(key) is not None
