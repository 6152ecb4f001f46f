"""The output of `kdscale evaluate` as tables: quality, then cost."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdscale.formatting import bytes_text, number_of, percent_text
from kdscale.report.comparison_tables import flops_text
from kdscale.report.table import Table

_SHARES = {
    "top-1 %": "top1_accuracy",
    "top-5 %": "top5_accuracy",
    "prec. %": "macro_precision",
    "recall %": "macro_recall",
    "calib. %": "calibration_error",
    "agree %": "agreement",
}

_IF_KNOWN = {
    "k-NN %": "knn_top1_accuracy",
    "probe %": "probe_top1_accuracy",
    "EMA top-1 %": "ema_top1_accuracy",
}
"""Columns that are left out where no evaluation has them."""
_UNDECIDED = {
    "non_finite_samples": "with NaN or infinite logits, counted as wrong",
    "tied_samples": "whose largest logit belongs to several classes, the first of which counts",
}
_SIZES = ("1", "64")  # of batches
_MEANINGS = """\
prec., recall: means over classes; calib.: calibration error, 15 bins; agree: share of test images
whose top-1 is the teacher's; activations: most bytes at one time in a forward pass of 1 / 64
images; ms: median (95th percentile) of such a pass, without loading and preprocessing."""
_FLOPS_MEANING = (
    "FLOPs: of a forward pass of one image, two for a multiplication with its addition."
)


def evaluation_tables(found: Sequence[Mapping[str, Any]]) -> str:
    """Return quality (a table for each test split), cost, and the meaning of the columns."""
    above, names = _names([one["run"] for one in found])
    return "\n".join(
        [
            *([f"{above}:", ""] if above else []),
            *_quality(names, found),
            *_notes(names, found),
            *_undecided(names, found),
            "",
            _cost(names, found),
            "",
            _MEANINGS,
            *([_FLOPS_MEANING] if _has_flops(found) else []),
            *_machines(names, found),
        ]
    )


def _has_flops(found: Sequence[Mapping[str, Any]]) -> bool:
    return any("flops" in one for one in found)


def _cost(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of what a forward pass costs; FLOPs where any evaluation has them."""
    has_flops = _has_flops(found)
    rows = [
        [name, f"{one['num_parameters']:,}",
         *([flops_text(one["flops"]) if one.get("flops") else "-"] if has_flops else []),
         bytes_text(one["weight_bytes"]), _activations(one["peak_activation_bytes"]),
         *[_milliseconds(one["latency"].get(size)) for size in _SIZES]]
        for name, one in zip(names, found, strict=True)
    ]  # fmt: skip
    flops = ["FLOPs"] if has_flops else []
    header = ["run", "parameters", *flops, "weights", "activations"]
    return Table([*header, "ms at 1 (p95)", "ms at 64 (p95)"], rows).text()


def _quality(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return a table for each test split: results on different images are never in one."""
    tables: dict[str, list[list[str]]] = {}
    known = {title: key for title, key in _IF_KNOWN.items() if any(key in one for one in found)}
    columns = _SHARES | known
    for name, one in zip(names, found, strict=True):
        row = [name, *[percent_text(one.get(key), "-") for key in columns.values()]]
        tables.setdefault(_test_set(one), []).append(row)
    for number, (test_set, rows) in enumerate(tables.items()):
        yield from [""] if number else []
        yield f"On {test_set}:"
        yield ""
        yield Table(["run", *columns], rows).text()
    headless = [name for name, one in zip(names, found, strict=True) if one.get("classifier")]
    if headless:
        yield ""
        yield f"{', '.join(headless)}: no classifier; all columns but probe are those of k-NN."
    if "EMA top-1 %" in known:
        yield ""
        yield "EMA: moving average of the weights (ema_decay)."


def _test_set(one: Mapping[str, Any]) -> str:
    """Return `64 images of SOURCE, split test (3f9a12bc34de)`, with the fingerprint's start."""
    images = number_of(one["num_samples"], "image")
    place = f" of {one['test_source']}, split {one['test_split']}" if "test_source" in one else ""
    other = ", not the run's own test split" if one.get("own_test_set") is False else ""
    return f"{images}{place} ({one['test_fingerprint'][:12]}{other})"


def _undecided(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on models with non-finite logits or ties."""
    return [
        f"{name}: {number_of(one[key], 'image')} {words}"
        for key, words in _UNDECIDED.items()
        for name, one in zip(names, found, strict=True)
        if one.get(key)
    ]


def _names(runs: Sequence[str]) -> tuple[str, list[str]]:
    """Return the common folder of all runs and their names; "" and their paths without one."""
    parents = {str(Path(run).parent) for run in runs}
    if len(parents) > 1 or parents == {"."}:
        return "", list(runs)
    return parents.pop(), [Path(run).name for run in runs]


def _activations(peaks: Mapping[str, int]) -> str:
    return " / ".join(bytes_text(peaks[size]) if size in peaks else "-" for size in _SIZES)


def _milliseconds(latency: Mapping[str, float] | None) -> str:
    if latency is None:
        return "-"
    return "{:.3g} ({:.3g})".format(1000 * latency["median_seconds"], 1000 * latency["p95_seconds"])


def _notes(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return why agreement is not known, each reason once."""
    reasons: dict[str, list[str]] = {}
    for name, one in zip(names, found, strict=True):
        if one["agreement_note"] is not None:
            reasons.setdefault(one["agreement_note"], []).append(name)
    return [f"agree - of {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _machines(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the machine and its settings; by run, where they differ."""
    places: dict[str, list[str]] = {}
    for name, one in zip(names, found, strict=True):
        threads = number_of(one["num_threads"], "thread")
        layout = one["memory_format"].replace("_", " ")
        place = f"{one['device_name']}, {threads}, {one['precision']}, {layout}"
        places.setdefault(place, []).append(name)
    if len(places) == 1:
        return [f"Measured on {place}." for place in places]
    return [f"Measured on {place}: {', '.join(which)}." for place, which in places.items()]
