"""Keys of a store's objects: relative paths that cannot lead out of the store.

A listing of a bucket or of a repository comes from whoever wrote it. As a path, one of its keys
could name any file of this machine, so each key is checked before it is used as one.
"""

import re

from kdscale.errors import UnsafePathError

_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")


def check_key(key: str, where: str) -> str:
    """Return a key of a store after checking that it stays below the store, as a path as well.

    Args:
        key: parts with `/` between them.
        where: the store, for the message.

    Raises:
        UnsafePathError: it is absolute, has an empty part, `.`, `..`, a backslash or a NUL.
    """
    if _KEY.fullmatch(key) is None:
        raise UnsafePathError(
            f"{key[:200]!r} is not the key of an object of {where}: wanted names with / between "
            "them, without '..', empty parts and backslashes; it does not come from kdscale, or "
            "was changed"
        )
    return key
