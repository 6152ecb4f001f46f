"""The output of `kdscale bench` as tables."""

from collections.abc import Mapping
from typing import Any

from kdscale.formatting import number_of
from kdscale.report.table import Table

_STEPS = {
    "fixed_batch": "bare PyTorch loop, one batch over and over",
    "plain": "bare PyTorch loop, labels",
    "supervised": "kdscale, labels",
    "staged": "kdscale, targets in memory",
    "cached": "kdscale, targets from the cache",
    "online": "kdscale, online teacher",
    "views": "rendering the views alone",
}
_RATIOS = {
    "fixed_batch_over_plain_time": "bare loop on one batch / on batches of the data",
    "supervised_over_plain_time": "kdscale's loop / bare loop",
    "cached_over_staged_time": "reading targets: cached / in memory",
    "cached_over_supervised_time": "cached / supervised",
    "online_over_cached_time": "online / cached",
    "views_over_supervised_time": "rendering the views / supervised",
    "build_over_bare_teacher_time": "build / bare teacher loop",
}


_LONG_FIRST_STEP = 5.0
"""Seconds of a first step above which the first steps are printed."""
_READING = (
    "Targets: {held_bytes:,} bytes of memory, an epoch in {windows}; "
    "{waited_share:.2%} of the steps' time spent waiting; {read_amplification:.2f} bytes read "
    "for each byte needed."
)


def bench_table(found: Mapping[str, Any]) -> str:
    """Return images per second of each kind of step, ratios of times, and reading of targets."""
    rates = [
        [label, f"{found[f'{name}_images_per_second']:,.0f}"]
        for name, label in _STEPS.items()
        if f"{name}_images_per_second" in found  # not in what older versions measured
    ]
    ratios = [
        [label, f"{found[name]:.3f}", "{:.3f} .. {:.3f}".format(*found[f"{name}_spread"])]
        for name, label in _RATIOS.items()
        if name in found
    ]
    parts = [
        Table(["training step", "images/s"], rates).text(),
        Table(["ratio of times", "median", "smallest .. largest round"], ratios).text(),
    ]
    if max((first := found.get("first_step_seconds", {"": 0})).values()) > _LONG_FIRST_STEP:
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in first.items())
        parts.append(f"First steps, which set up and compile, are not in these figures: {each}.")
    if "reading" in found:
        windows = number_of(found["reading"]["num_windows"], "window")
        parts.append(_READING.format(**found["reading"], windows=windows))
    return "\n\n".join(parts)
