"""Which columns hold images and labels, and what the labels mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from kdscale.data.class_names import canonical, check_distinguishable
from kdscale.errors import DataError
from kdscale.formatting import first_few, number_of

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls")


@dataclass(frozen=True, slots=True)
class Labels:
    """The label column of one split."""

    values: np.ndarray
    """int64 [N], position in `names`, -1 where a row has none."""
    names: tuple[str, ...]
    """Every class of the source, whether or not this split has a sample of it."""
    integers: bool = False
    """The source holds bare integers, so the name of a class is its number."""
    contiguous: bool = True
    """The integers are 0..n-1."""


def find_image_column(features: Mapping[str, Any], named: str | None, place: str) -> str:
    """The column as named, else the only image feature, else the only one with a usual name."""
    if named is not None:
        _require_column(features, named, place, "data.image")
        if not _holds_images(features[named]):
            raise DataError(
                f"column '{named}' of {place} holds no encoded images: columns are "
                f"{_listed(features)}. Set data.image to one of images or bytes"
            )
        return named
    images = [name for name, feature in features.items() if _is(feature, "Image")]
    if len(images) == 1:
        return images[0]
    candidates = images or [name for name, feature in features.items() if _holds_images(feature)]
    usual = [name for name in candidates if name.lower() in IMAGE_NAMES]
    for choice in (usual, candidates):
        if len(choice) == 1:
            return choice[0]
    problem = "several columns that may be the image" if candidates else "no column of images"
    raise DataError(
        f"{place} has {problem}: columns are {_listed(features)}. "
        + ("Set data.image" if candidates else "Point --data at a set of encoded images")
    )


def find_label_column(
    features: Mapping[str, Any], named: str | None, place: str, *, required: bool
) -> str | None:
    """The column as named, else the one that is usual and a ClassLabel, usual, or a ClassLabel."""
    if named is not None:
        _require_column(features, named, place, "data.label")
        return named
    usual = [
        name
        for name in features
        if name.lower().removeprefix("json.") in LABEL_NAMES and _holds_labels(features[name])
    ]
    marked = [name for name, feature in features.items() if _is(feature, "ClassLabel")]
    for choice in ([name for name in usual if name in marked], usual, marked):
        if len(choice) == 1:
            return choice[0]
    if usual or marked:
        raise DataError(
            f"{place} has several columns that may be the label: columns are {_listed(features)}. "
            "Set data.label"
        )
    if required:
        raise DataError(
            f"{place} has no column of labels: columns are {_listed(features)}. Set "
            "data.label, sort images into two or more class folders of the same depth, or "
            "distil without labels (hard_weight = 0)"
        )
    return None


def read_labels(splits: Mapping[str, Any], split: str, column: str | None, place: str) -> Labels:
    """Labels of one split, numbered by the classes of all splits, so that splits agree."""
    if column is None:
        return Labels(np.full(len(splits[split]), -1, dtype=np.int64), ())
    feature = splits[split].features[column]
    values = _read_column(splits[split], column)
    if _is(feature, "ClassLabel"):
        _check_not_empty(feature.names, column, place)
        check_distinguishable([feature.names], place)
        return _marked_labels(_as_int64(values, column, place), tuple(feature.names), column, place)
    everywhere = [
        _read_column(dataset, column)
        for dataset in splits.values()
        if column in dataset.column_names
        and getattr(dataset.features[column], "dtype", None) == feature.dtype
    ]
    if _kind(feature) == "string":
        by_split = [sorted(set(one.unique().to_pylist()) - {None}) for one in everywhere]
        check_distinguishable(by_split, place)
        names = sorted({name for one in by_split for name in one})
        _check_not_empty(names, column, place, values)
        position = {name: label for label, name in enumerate(names)}
        numbers = [position.get(name, -1) for name in values.to_pylist()]
        return Labels(np.array(numbers, dtype=np.int64), tuple(names))
    if _kind(feature) == "integer":
        known = np.unique(np.concatenate([_as_int64(one, column, place) for one in everywhere]))
        return _integer_labels(_as_int64(values, column, place), known[known != -1])
    raise DataError(
        f"column '{column}' of {place} is {_type_name(feature)}, not labels: wanted integers, "
        "strings or a ClassLabel. Set data.label"
    )


def rename_classes(labels: Labels, names: Sequence[str] | Mapping[str, str], place: str) -> Labels:
    """Return labels whose classes have the names of a file, as of `read_class_names`.

    Raises:
        DataError: a class has no name in it, or a list would rename classes that have names.
    """
    if isinstance(names, Mapping):
        if labels.integers:
            names = _by_number(names)
        else:
            if missing := [name for name in labels.names if name not in names]:
                raise DataError(
                    f"data.class_names has no name for {first_few(missing)} of the classes of "
                    f"{place}: name each"
                )
            return replace(labels, names=tuple(names[name] for name in labels.names))
    if not labels.names:
        return replace(labels, names=tuple(names))
    if not labels.integers:
        raise DataError(
            f"classes of {place} have names ({first_few(labels.names)}), and "
            "data.class_names lists others alone: write a JSON object of the new name for each "
            "present one"
        )
    known = np.array([int(name) for name in labels.names])
    if known[-1] >= len(names) or known[0] < 0:
        wrong = known[0] if known[0] < 0 else known[-1]
        raise DataError(
            f"{place} has the label {wrong}, and data.class_names names "
            f"{number_of(len(names), 'class', 'classes')}, 0..{len(names) - 1}: name each"
        )
    values = np.where(labels.values < 0, -1, known[labels.values])
    return Labels(values.astype(np.int64), tuple(names))


def _by_number(names: Mapping[str, str]) -> list[str]:
    """Return the names of classes 0..n-1, in this order.

    Raises:
        DataError: a number of them has no name.
    """
    missing = [str(number) for number in range(len(names)) if str(number) not in names]
    if missing:
        others = sorted(names.keys() - {str(number) for number in range(len(names))})
        raise DataError(
            f"data.class_names has no name for class {missing[0]}, and names {first_few(others)}: "
            f"name classes 0..{len(names) - 1}, by their numbers"
        )
    return [names[str(number)] for number in range(len(names))]


def choose_classes(
    labels: Labels, classes: Sequence[str | int] | None, place: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Rows, labels and names that remain: all of them, or those of `classes` in the order given."""
    rows = np.arange(len(labels.values))
    unlabelled = bool((labels.values < 0).all())
    if classes is None:
        if not labels.contiguous:
            raise DataError(
                f"labels of {place} are {first_few(labels.names, 10)}: wanted 0..n-1 without gaps. "
                "Renumber them, or list the wanted ones in data.classes"
            )
        return rows, labels.values, labels.names
    if unlabelled and not labels.names:
        return rows, labels.values, tuple(str(name) for name in classes)
    chosen = [_find_class(name, labels, place) for name in classes]
    names = tuple(labels.names[label] for label in chosen)
    if not chosen or len(set(chosen)) < len(chosen):
        raise DataError(f"data.classes of {place} is {list(classes)}: wanted each class once")
    if unlabelled:
        return rows, labels.values, names
    renumbered = np.full(len(labels.names) + 1, -1, dtype=np.int64)  # the last serves label -1
    renumbered[chosen] = np.arange(len(chosen))
    values = renumbered[labels.values]
    rows = np.flatnonzero(values >= 0)
    if len(rows) == 0:
        raise DataError(f"no row of {place} is of the classes {', '.join(names)}: choose others")
    return rows, values[rows], names


def _check_not_empty(names: Sequence[str], column: str, place: str, rows: Any = None) -> None:
    """Refuse a class without a visible name, which no recipe or table could name.

    Args:
        names: of all classes.
        column: of the labels.
        place: the split, for messages.
        rows: the name in each row, a `pyarrow.ChunkedArray`; None where rows hold numbers.
    """
    for number, name in enumerate(names):
        if not canonical(name):
            row = -1 if rows is None else rows.index(name).as_py()
            where = f"row {row}" if row >= 0 else f"class {number}"
            raise DataError(
                f"{where} of {place}, column '{column}', has the empty class name {name!r}: give "
                "the class a name, or where there is no label, leave it null"
            )


def _marked_labels(values: np.ndarray, names: tuple[str, ...], column: str, place: str) -> Labels:
    wrong = np.flatnonzero((values < -1) | (values >= len(names)))
    if len(wrong):
        raise DataError(
            f"row {wrong[0]} of {place} has label {values[wrong[0]]} in column '{column}', which "
            f"names {number_of(len(names), 'class', 'classes')}: wanted 0..{len(names) - 1}, or -1 "
            "for none"
        )
    return Labels(values, names)


def _integer_labels(values: np.ndarray, known: np.ndarray) -> Labels:
    positions = np.searchsorted(known, values)
    return Labels(
        values=np.where(values == -1, -1, positions).astype(np.int64),
        names=tuple(str(number) for number in known),
        integers=True,
        contiguous=bool((known == np.arange(len(known))).all()),
    )


def _find_class(name: str | int, labels: Labels, place: str) -> int:
    if isinstance(name, int) and not labels.integers:
        return _numbered_class(name, labels, place)
    if str(name) in labels.names:
        return labels.names.index(str(name))
    same = [
        label for label, one in enumerate(labels.names) if canonical(one) == canonical(str(name))
    ]
    if len(same) == 1:  # in another Unicode form
        return same[0]
    near = get_close_matches(str(name), labels.names, n=1, cutoff=0)
    hint = f"Nearest: '{near[0]}'. " if near else ""
    raise DataError(
        f"{place} has no class '{name}'. {hint}It has {first_few(labels.names, 10)}. "
        "Correct data.classes"
    )


def _numbered_class(number: int, labels: Labels, place: str) -> int:
    """The label that a number stands for, where it cannot be a name as well."""
    names = labels.names
    if str(number) in names and names.index(str(number)) != number:
        other = f"label {number} is {names[number]!r}" if 0 <= number < len(names) else "a label"
        raise DataError(
            f"data.classes names {number}, but classes of {place} have numbers for names, and "
            f'{other}: write the name as text, "{number}"'
        )
    if str(number) not in names and all(name.lstrip("-").isdigit() for name in names):
        raise DataError(
            f"{place} has no class named {number}: it has {first_few(names, 10)}. Correct "
            f'data.classes, with names as text, such as "{names[0]}"'
        )
    if 0 <= number < len(names):
        return number
    raise DataError(
        f"{place} has no class {number}: its labels are 0..{len(names) - 1}. Correct data.classes"
    )


def _read_column(dataset: Any, column: str) -> Any:
    return dataset.select_columns([column]).with_format("arrow")[:].column(0)


def _as_int64(values: Any, column: str, place: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers: np.ndarray = values.cast("int64").fill_null(-1).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column '{column}' of {place} holds numbers up to {pc.max(values).as_py()}, too large "
            "for labels: wanted 0..n-1 without gaps. Renumber them, or set data.label to another "
            "column"
        ) from error
    return numbers


def _require_column(features: Mapping[str, Any], named: str, place: str, setting: str) -> None:
    if named not in features:
        raise DataError(
            f"{place} has no column '{named}': columns are {_listed(features)}. Correct {setting}"
        )


def _is(feature: Any, name: str) -> bool:
    return type(feature).__name__ == name


def _holds_images(feature: Any) -> bool:
    if _is(feature, "Image"):
        return True
    if isinstance(feature, Mapping):
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary", "binary_view")


def _kind(feature: Any) -> str:
    """Of a `datasets.Value`: "integer", "string" or "other"."""
    dtype = str(getattr(feature, "dtype", "")) if _is(feature, "Value") else ""
    if dtype.removeprefix("u").startswith("int") or dtype == "bool":
        return "integer"
    return "string" if dtype in ("string", "large_string", "string_view") else "other"


def _holds_labels(feature: Any) -> bool:
    return _is(feature, "ClassLabel") or _kind(feature) != "other"


def _type_name(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
