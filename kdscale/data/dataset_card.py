"""Folders whose README.md lists configurations, splits and columns, as repositories of the hub."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from kdscale.data.listing import Listing
from kdscale.errors import DataError
from kdscale.formatting import first_few, printable

_CARD_HEADER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)


def has_card(root: Path) -> bool:
    """Whether a folder describes configurations or columns, as repositories of the hub do."""
    if (root / ".huggingface.yaml").is_file() or (root / "dataset_infos.json").is_file():
        return True
    return bool(re.search(r"^(configs|dataset_info)\s*:", _card_header(root), re.MULTILINE))


def _card_header(root: Path) -> str:
    """The YAML header of a folder's README.md; empty where there is none."""
    try:
        text = (root / "README.md").read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""
    header = _CARD_HEADER.match(text)
    return header[1] if header else ""


def config_error(source: str, config: str | None, names: Sequence[str]) -> DataError:
    """The error for a source of several configurations, of which none or another one is named."""
    problem = f"has no configuration {config!r}" if config else "has several configurations"
    return DataError(
        f"{source} {problem}: it has {', '.join(names)}. Set data.config to one of them"
    )


def open_by_card(
    listing: Listing, tables: list[str], config: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the splits of a folder that has a card, and the files that were read.

    Raises:
        DataError: several configurations and none is chosen, a file outside the folder, or one of
            two splits.
    """
    from datasets import get_dataset_config_names, load_dataset_builder

    root = listing.root.resolve()
    _check_card_paths(listing.root)
    names = get_dataset_config_names(str(root))
    if (config is not None and config not in names) or (
        config is None and len(names) > 1 and "default" not in names
    ):
        raise config_error(str(listing.root), config, names)
    state = state_of(root / file for file in tables)
    builder = load_dataset_builder(str(root), name=config, description=state)
    read = [
        os.path.relpath(file, root)
        for files in (builder.config.data_files or {}).values()
        for file in files
    ]
    if len(set(read)) < len(read):
        twice = sorted({file for file in read if read.count(file) > 1})
        raise DataError(
            f"{listing.root}: {first_few(twice)} would be read as part of two splits: state in "
            "README.md (configs: data_files) which split each file belongs to"
        )
    builder.download_and_prepare()
    return dict(builder.as_dataset()), read


def _check_card_paths(root: Path) -> None:
    """Refuse a card that names files at an address or outside its folder.

    Raises:
        DataError: naming the first.
    """
    import yaml

    with suppress(yaml.YAMLError, OSError):  # what cannot be read, `datasets` refuses
        extra = root / ".huggingface.yaml"
        for text in (_card_header(root), extra.read_text() if extra.is_file() else ""):
            header = yaml.safe_load(text)
            configs = header.get("configs") if isinstance(header, dict) else None
            for config in configs if isinstance(configs, list) else []:
                table = config if isinstance(config, dict) else {}
                for path in _texts([table.get("data_files"), table.get("data_dir")]):
                    _check_below(root, path)


def _check_below(root: Path, path: str) -> None:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "::" in path or "://" in path:
        raise DataError(
            f"README.md of {root} names {printable(path)!r}, which is not below that folder, and "
            "data of a folder is read from it alone: copy the files there, or name their folder or "
            "repository as data.source"
        )


def _texts(value: Any) -> Iterator[str]:
    """Return all strings in nested lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)


def state_of(paths: Iterable[Path]) -> str:
    """Hash the state of files in the file system, for the key under which `datasets` stores rows.

    `datasets` itself looks at paths and modification times, which a copy of another file may bear;
    the time of the last change of a file's record cannot be set.
    """
    states = []
    for path in paths:
        status = path.stat()
        states.append([str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()
