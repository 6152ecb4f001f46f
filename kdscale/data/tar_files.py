"""Tar files of the webdataset format: members `KEY.EXTENSION` that share a key are one sample.

Images are not unpacked: the tar stays mapped into memory, and each cell of the image column is a
part of it. No member is executed or unpickled; labels are read from `.cls`, `.json` and text.
"""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from kdscale.data.columns import LABEL_NAMES
from kdscale.data.image_cells import cells_between, cells_of_files
from kdscale.data.listing import IMAGE_SUFFIXES, check_no_pointer, is_hidden
from kdscale.errors import DataError
from kdscale.formatting import first_few, number_of, printable, reason_of

_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)", re.DOTALL)
_LARGEST_LABEL = 1 << 20
"""Most bytes of a member that holds a label."""
_MIXED = "image"
"""Column of the images of samples that have one each, of several formats."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A file inside a tar: its name, and where its bytes lie."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class _Tar:
    """The samples of a tar, in its order."""

    path: Path
    name: str
    """Path below the data folder."""
    samples: Mapping[str, Mapping[str, _Member]]
    """Members of each sample by extension, in small letters."""
    passed_over: Counter[str]
    """Number of members that belong to no sample, by what they are."""

    def images(self, column: str) -> list[_Member]:
        """Return the image of each sample that a column holds."""
        if column != _MIXED:
            return [sample[column] for sample in self.samples.values()]
        return [sample[_image_extensions(sample)[0]] for sample in self.samples.values()]


@dataclass(frozen=True, slots=True)
class TarSplit:
    """The tars of one split."""

    dataset: Any
    """`datasets.Dataset` with a column of the names of images for each of their extensions, and one
    of labels."""
    tars: Sequence[_Tar]
    label: str | None
    """Extension of the members that labels were read from."""

    def image_cells(self, column: str) -> Any:
        """Return the bytes and names of a column's images, as of `cells_between`."""
        import pyarrow as pa

        chunks = []
        for tar in self.tars:
            with pa.memory_map(str(tar.path)) as file:
                content = file.read_buffer()
            images = tar.images(column)
            spans = np.array([(one.start, one.start + one.size) for one in images], dtype=np.int64)
            names = [f"{tar.name}/{one.name}" for one in images]
            chunks.append(cells_between(content, spans.reshape(-1, 2), names))
        return pa.chunked_array(chunks)

    def passed_over(self, column: str) -> tuple[str, ...]:
        """Return phrases about members that are neither of an image column nor labels."""
        members: Counter[str] = Counter()
        for tar in self.tars:
            members += tar.passed_over
            images = {member.name for member in tar.images(column)}
            for sample in tar.samples.values():
                members.update(
                    f".{extension}"
                    for extension, member in sample.items()
                    if extension != self.label and member.name not in images
                )
        return tuple(f"{number_of(count, 'member')} {what}" for what, count in members.items())


def open_tars(
    root: Path, splits: Mapping[str, Sequence[str]], label: str | None
) -> dict[str, TarSplit]:
    """Open the tars of each split; their members stay where they are.

    Args:
        root: folder of the tars.
        splits: their paths below it, by split.
        label: extension of the member that holds the label, or `json.KEY`; None = `cls`, else one
            of the usual keys of `json`, if there is one.

    Raises:
        DataError: a tar is damaged or cut off, or a sample has no image or a label that cannot be
            read.
    """
    tars = {name: [read_tar(root, file) for file in files] for name, files in splits.items()}
    for those in tars.values():
        _check_images(those)
    everything = [tar for those in tars.values() for tar in those]
    column = label or _usual_label(everything)
    labels = {name: list(_labels(those, column)) for name, those in tars.items()}
    found = [one for those in labels.values() for one in those if one is not None]
    if label and not found:
        extensions = sorted({one for tar in everything for s in tar.samples.values() for one in s})
        raise DataError(
            f"no sample of {root} has a label in {label!r}: its members are "
            f"{first_few(extensions, 10)}. Set data.label to an extension, or to json.KEY"
        )
    column = column if found else None
    kind = "int64" if all(isinstance(one, int) for one in found) else "string"
    return {
        name: TarSplit(_dataset(those, column, labels[name], kind), those, _parts(column)[0])
        for name, those in tars.items()
    }


def read_tar(root: Path, file: str) -> _Tar:
    """Read the headers of a tar, to its end.

    Raises:
        DataError: it is no tar, damaged or cut off, a member is no regular file, or the members of
            a sample do not lie side by side.
    """
    path = root / file
    check_no_pointer(path)
    samples: dict[str, dict[str, _Member]] = {}
    passed_over: Counter[str] = Counter()
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # a million of them
                if info.size < 0:  # `tarfile` would read earlier members again, for ever
                    raise ValueError(f"member {printable(info.name)} has {info.size} bytes")
                if any(map(is_hidden, PurePosixPath(info.name).parts)):
                    passed_over["hidden or of a system"] += 1
                    continue
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(
                        f"{path}: member {printable(info.name)} is not a regular file: write the "
                        "tar without links, devices and sparse files"
                    )
                _add(samples, passed_over, _Member(info.name, info.offset_data, info.size), path)
            _check_end(raw, tar.offset)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or cut off ({reason_of(error)}): download or write it again; a "
            "compressed tar has to be unpacked"
        ) from error
    if not samples:
        raise DataError(f"{path} holds no samples KEY.EXTENSION: move it elsewhere")
    return _Tar(path, file, samples, passed_over)


def _add(
    samples: dict[str, dict[str, _Member]], others: Counter[str], member: _Member, path: Path
) -> None:
    parts = _MEMBER.fullmatch(member.name)
    if parts is None:
        others["without extension"] += 1
        return
    key, extension = parts["key"], parts["extension"].lower()
    apart = key in samples and key != next(reversed(samples))
    if apart or extension in samples.get(key, ()):
        problem = "do not lie side by side" if apart else f"include .{extension} twice"
        raise DataError(
            f"{path}: the members of sample {printable(key)} {problem}: write the tar with each "
            "sample's members one after the other, such as in the order of their names"
        )
    samples.setdefault(key, {})[extension] = member


def _check_end(raw: BinaryIO, end: int) -> None:
    """Raise ValueError unless a tar ends in blocks of zeros where its last member does.

    `tarfile` takes a damaged header, and the end of the file, for the end of the tar.
    """
    raw.seek(end)
    rest = 0
    while block := raw.read(1 << 20):
        if block.count(0) < len(block):
            raise ValueError(f"no header is readable at byte {end:,}, and data follow")
        rest += len(block)
    if rest < tarfile.BLOCKSIZE:
        raise ValueError("the blocks that mark its end are missing")


def _image_extensions(sample: Mapping[str, _Member]) -> list[str]:
    return [one for one in sample if f".{one.rpartition('.')[2]}" in IMAGE_SUFFIXES]


def _image_columns(tars: Sequence[_Tar]) -> list[str]:
    """Return the extensions of images that all samples have; else the one column of all formats.

    None where what all have may be a companion, such as a mask beside images of several formats.
    """
    kinds = {tuple(_image_extensions(one)) for tar in tars for one in tar.samples.values()}
    if {len(one) for one in kinds} == {1} and len(kinds) > 1:
        return [_MIXED]
    shared = set.intersection(*map(set, kinds))
    further = [set(one) - shared for one in kinds]
    companions = all("." in one for one in shared)
    return [] if all(further) or (companions and any(further)) else sorted(shared)


def _check_images(tars: Sequence[_Tar]) -> None:
    for tar in tars:
        for key, sample in tar.samples.items():
            if not _image_extensions(sample):
                raise DataError(
                    f"{tar.path}: sample {printable(key)} has no image, only "
                    f"{first_few([f'.{one}' for one in sample])}: remove it from the tar"
                )
    if not _image_columns(tars):
        raise DataError(
            f"samples of {tars[0].path.parent} have several images of different extensions each: "
            "name the images that are meant alike, such as KEY.jpg"
        )


def _usual_label(tars: Sequence[_Tar]) -> str | None:
    if any("cls" in sample for tar in tars for sample in tar.samples.values()):
        return "cls"
    for tar in tars:
        if found := next((one["json"] for one in tar.samples.values() if "json" in one), None):
            with tar.path.open("rb") as file:
                keys = _read_json(file, found)
            return next((f"json.{name}" for name in LABEL_NAMES if name in keys), None)
    return None


def _labels(tars: Sequence[_Tar], column: str | None) -> Iterator[int | str | None]:
    """Yield the label of each sample; None where it has none."""
    extension, key = _parts(column)
    for tar in tars:
        with tar.path.open("rb") as file:
            for sample in tar.samples.values():
                member = sample.get(extension or "")
                if member is None:
                    yield None
                elif key:
                    yield _json_label(_read_json(file, member).get(key), file, member)
                else:
                    yield _text_label(file, member)


def _parts(column: str | None) -> tuple[str | None, str]:
    """Extension and key of a column of labels; the key is empty but for JSON."""
    if column is not None and column.startswith("json."):
        return "json", column.removeprefix("json.")
    return column, ""


def _text_label(file: BinaryIO, member: _Member) -> int | str | None:
    try:
        text = _read(file, member).decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name}: {printable(member.name)} holds no label but binary data: set data.label "
            "to an extension of text, or to json.KEY"
        ) from error
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text or None


def _json_label(value: Any, file: BinaryIO, member: _Member) -> int | str | None:
    if value is None or isinstance(value, str) or type(value) is int:
        return value
    raise DataError(
        f"{file.name}: {printable(member.name)} has the label {value!r:.80}, wanted a whole number "
        "or text: set data.label to another key, as json.KEY"
    )


def _read_json(file: BinaryIO, member: _Member) -> Mapping[str, Any]:
    try:
        content = json.loads(_read(file, member))
    except ValueError as error:
        raise DataError(
            f"{file.name}: {printable(member.name)} is no JSON ({reason_of(error)}): write it again"
        ) from error
    return content if isinstance(content, dict) else {}


def _read(file: BinaryIO, member: _Member) -> bytes:
    if member.size > _LARGEST_LABEL:
        raise DataError(
            f"{file.name}: {printable(member.name)} has {member.size:,} bytes, wanted a label: set "
            "data.label to another extension"
        )
    file.seek(member.start)
    return file.read(member.size)


def _dataset(tars: Sequence[_Tar], column: str | None, labels: list[Any], kind: str) -> Any:
    import datasets
    import pyarrow as pa

    columns: dict[str, Any] = {}
    features: dict[str, Any] = {}
    for name in _image_columns(tars):
        columns[name] = cells_of_files([one.name for tar in tars for one in tar.images(name)])
        features[name] = datasets.Image()
    if column is not None:
        texts = [None if one is None else str(one) for one in labels]
        columns[column] = pa.array(texts if kind == "string" else labels, kind)
        features[column] = datasets.Value(kind)
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns)), info=info)
