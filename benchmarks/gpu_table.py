"""The results of `benchmarks/gpu.py` as tables, for the terminal and for docs/results/gpu.md."""

from collections.abc import Mapping
from typing import Any

from kdscale.report.table import Table
from kdscale.tables.results_table import ResultsRow, results_table

_BENCH = {
    "fixed_batch_images_per_second": "bare loop, one batch",
    "plain_images_per_second": "bare loop",
    "supervised_images_per_second": "supervised",
    "cached_images_per_second": "cached",
    "online_images_per_second": "online",
    "build_images_per_second": "build",
}
_RATIOS = {
    "fixed_batch_over_plain_time": "one batch / bare",
    "supervised_over_plain_time": "supervised / bare",
    "cached_over_staged_time": "cached / staged",
    "cached_over_supervised_time": "cached / supervised",
    "online_over_cached_time": "online / cached",
    "build_over_bare_teacher_time": "build / bare teacher",
}
_STEPS = {"eager": "eager", "compiled": "compiled", "graphs": "compiled, CUDA graphs"}


def gpu_tables(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Return Markdown of all steps: machine, tests, steps, views, profile and runs."""
    done = {name: found for name, found in steps.items() if "error" not in found}
    benches = {n.removeprefix("bench-"): f for n, f in done.items() if n.startswith("bench-")}
    runs = {n.removeprefix("run-"): f for n, f in done.items() if n.startswith("run-")}
    parts = [
        _values("machine", done.get("environment", {})),
        _values("tests that need a GPU", done.get("tests", {})),
        _benches(benches),
        _views(done.get("views", {})),
        _values("one training step, profiled", done.get("profile", {})),
        _graphs({n.removeprefix("graphs-"): f for n, f in done.items() if n.startswith("graphs-")}),
        *[_run(name, found) for name, found in runs.items()],
        _failures({name: found for name, found in steps.items() if "error" in found}),
    ]
    return "\n\n".join(part for part in parts if part)


def _values(title: str, found: Mapping[str, Any]) -> str:
    rows = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            rows += [[f"{name}: {key}", str(one)] for key, one in value.items()]
        else:
            text = f"{value:,}" if isinstance(value, int | float) else str(value)
            rows.append([name.replace("_", " "), text])
    return Table([title, ""], rows).text() if rows else ""


def _benches(benches: Mapping[str, Mapping[str, Any]]) -> str:
    if not benches:
        return ""
    rates = [
        [name, *[f"{found[key]:,.0f}" if key in found else "" for key in _BENCH]]
        for name, found in benches.items()
    ]
    ratios = [
        [name, *[f"{found[key]:.3f}" if key in found else "" for key in _RATIOS]]
        for name, found in benches.items()
    ]
    tables = (
        Table(["images/s", *_BENCH.values()], rates),
        Table(["ratio of times, median", *_RATIOS.values()], ratios),
    )
    return "\n\n".join(table.text() for table in tables)


def _views(found: Mapping[str, Any]) -> str:
    rates = found.get("images_per_second", {})
    rows = [[name, f"{rate:,}"] for name, rate in rates.items()]
    title = f"views alone, batches of {found.get('batch_size')}"
    return Table([title, "images/s"], rows).text() if rows else ""


def _graphs(students: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the times of steps eager, compiled and with CUDA graphs, and what these save."""
    rows = [
        [
            f"{student}, batch {found['batch_size']}",
            *[f"{1e3 * found[f'{kind}_step_seconds']:.3f}" for kind in _STEPS],
            f"{found['graphs_over_compiled_time']:.3f}",
            "yes" if found["saves_more_than_10_percent"] else "no",
        ]
        for student, found in students.items()
    ]
    head = ["ms a step", *_STEPS.values(), "graphs / compiled", "more than 10 % saved"]
    return Table(head, rows).text() if rows else ""


def _run(name: str, found: Mapping[str, Any]) -> str:
    if "rows" not in found:
        return ""
    return f"{name}:\n\n{results_table([ResultsRow(**row) for row in found['rows']])}"


def _failures(steps: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[name, str(found["error"])] for name, found in steps.items()]
    return Table(["not finished", "why"], rows, numbers=False).text() if rows else ""
