"""The folders, files and URLs that an experiment reads and writes."""

from dataclasses import dataclass
from pathlib import Path

from kdscale.cache.stores.read_through import Copies
from kdscale.cache.stores.store import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Locations:
    """Locations that an experiment reads and writes, which its recipe does not name."""

    cache_root: Path
    """Folder of caches and of decoded images."""
    run: Path | None = None
    """Folder of the run, or of a whole recipe's runs; None for commands that train nothing."""
    cache: Place | None = None
    """Folder or URL of the recipe's cache; None = found by content, or named after the recipe."""
    copies: Copies | None = None
    """Local copies of a remote cache's objects; None = objects are read and not stored."""
    teacher_weights: str | None = None
    """Weights file of the teacher, for recipes that name none; None = not trained yet."""

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        assert self.run is not None, "commands that train name a folder"
        return self.run
