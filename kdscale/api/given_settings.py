"""Settings as Python code gives them: sections of a recipe, checked as those of a file are."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdscale import config
from kdscale.cache.stores.store import Place, is_remote, name_of
from kdscale.errors import Interrupted


def recipe_of(call: str, place: Place, **sections: Mapping[str, Any]) -> config.Recipe:
    """Return the recipe of some sections, which is named after its cache.

    Args:
        call: name of the public function, for messages.
        place: folder or URL of the cache.
        sections: tables of the recipe.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type or range.
    """
    tables = {name: _with_lists(section) for name, section in sections.items()}
    name = re.sub(r"^[\W_]+|[^\w.-]", "", name_of(place).removesuffix(".zarr"), flags=re.ASCII)
    return config.parse_recipe({"name": name or "python", **tables}, f"kdscale.{call}")


def _with_lists(value: Any) -> Any:
    """Return a value with lists in place of tuples, as TOML has them."""
    if isinstance(value, Mapping):
        return {key: _with_lists(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_with_lists(one) for one in value]
    return value


@contextmanager
def interruptible(folder: Path | None) -> Iterator[None]:
    """Turn a stop by a signal into KeyboardInterrupt: no loop over several calls goes on after it.

    Args:
        folder: where the same call resumes; None if nothing is stored.
    """
    try:
        yield
    except Interrupted as stop:
        goes_on = "nothing is stored" if folder is None else f"the same call resumes in {folder}"
        raise KeyboardInterrupt(f"stopped by a signal: {goes_on}") from stop


def images_root(cache: Place) -> Path:
    """Return the folder of decoded images: beside a local cache, else `cache`."""
    return Path("cache").absolute() if is_remote(cache) else Path(cache).absolute().parent
