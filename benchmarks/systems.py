"""The page that compares five published systems with ours, from the result pages of each."""

import json
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

from kdscale.formatting import NOTHING, spread
from kdscale.report.table import Table
from kdscale.report.training_cost import break_even

_LABELS = ("teacher", "alone", "online", "cache")
_STUDENTS = _LABELS[1:]


def systems_tables(systems: list[dict[str, Any]], results: Path) -> str:
    """Accuracy, marks and time of every system.

    Args:
        systems: `name`, `result` (name of a JSON file in `results`, or None where nothing was run),
            `published` (teacher, alone, distilled: top-1 in %, or None), `test_images`, `budget`,
            `other_task` (where that is not the published one: accuracies are then not compared).
        results: folder of the result files.
    """
    rows = [(system, _results(system, results)) for system in systems]
    parts = [
        "Top-1 on the test split, in %, mean ± standard deviation over seeds of the student.",
        _accuracy_table(rows),
        "Against what was published, and cached against online. Noise: two standard errors of the "
        "difference between two accuracies on that many test images.",
        _marks_table(rows),
        "Seconds of training, evaluation left out, and of the build, once for all students.",
        _time_table(rows),
        *[f"* **{system['name']}**: {system['budget']}" for system in systems],
    ]
    return "\n\n".join(parts[:6]) + "\n\n" + "\n".join(parts[6:])


def systems_summary(systems: list[dict[str, Any]], results: Path) -> str:
    """Return the README's table: one line for each system whose `models` are named."""
    lines = [["system", "teacher → student", "published", *_LABELS[:3], "cached"], ["---"] * 7]
    for system in systems:
        if "models" not in system:
            continue
        found = _results(system, results)
        ours = [spread(_accuracies(found[k]), 2) if k in found else "" for k in _LABELS]
        published = _published(system, "alone", "distilled")
        lines.append([system["name"], system["models"], published, *ours])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _results(system: dict[str, Any], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Results of each seed, by label."""
    if system["result"] is None:
        return {}
    found = json.loads((folder / f"{system['result']}.json").read_text())["found"]
    return {row["label"]: row["results"] for row in found["rows"]}


def _accuracy_table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = []
    for system, found in rows:
        ours = [spread(_accuracies(found[k]), 2) if k in found else "" for k in _LABELS]
        seeds = str(len(found["cache"])) if "cache" in found else "not run"
        lines.append([_name(system), _published(system), *ours, seeds])
    header = ["system", "published: teacher / alone / distilled"]
    return Table([*header, "teacher", "alone", "online", "cached", "seeds"], lines).text()


def _marks_table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = []
    for system, found in rows:
        if "cache" not in found:
            continue
        published = system["published"]
        cached = mean(_accuracies(found["cache"]))
        gain = cached - mean(_accuracies(found["alone"]))
        other = system.get("other_task", False)
        line = [system["name"], _against(cached, None if other else published["distilled"])]
        line.append(_against(gain, _gain(published), sign="+"))
        line.append(_difference(found, cached, system["test_images"]))
        lines.append(line)
    header = ["system", "distilled (published)", "gain over alone (published)"]
    return Table([*header, "cached - online (noise)"], lines).text()


def _against(ours: float, published: float | None, sign: str = "") -> str:
    """`73.20 (71.89): reached`."""
    if published is None:
        return f"{ours:{sign}.2f} (none)"
    reached = "reached" if ours >= published else "missed"
    return f"{ours:{sign}.2f} ({published:{sign}.2f}): {reached}"


def _difference(found: dict[str, Any], cached: float, test_images: int) -> str:
    if "online" not in found:
        return "online not run"
    online = mean(_accuracies(found["online"]))
    share = cached / 100
    noise = 200 * sqrt(2 * share * (1 - share) / test_images)
    within = "equal within noise" if abs(cached - online) <= noise else "different"
    return f"{round(cached - online, 2) + 0.0:+.2f} ({noise:.2f}): {within}"


def _time_table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = []
    for system, found in rows:
        if "cache" not in found:
            continue
        seconds = {k: _seconds(found[k]) for k in _STUDENTS if k in found}
        shown = [f"{mean(seconds[k]):,.0f}" if k in seconds else "" for k in _STUDENTS]
        build = found["cache"][0]["build_seconds"]
        line = [system["name"], *shown, f"{build:,.0f}"]
        if "online" in seconds:
            line += [f"{mean(seconds['online']) / mean(seconds['cache']):.2f}"]
            students = break_even(build, mean(seconds["cache"]), mean(seconds["online"]))
            line += ["never" if students is None else str(students)]
        else:
            line += ["", ""]
        lines.append(line)
    header = ["system", "alone", "online", "cached", "build", "online / cached"]
    return Table([*header, "students to break even"], lines).text()


def _name(system: dict[str, Any]) -> str:
    name, result = system["name"], system["result"]
    return name if result is None else f"[{name}]({result}.md)"


def _published(system: dict[str, Any], *keys: str) -> str:
    values = (system["published"][key] for key in keys or ("teacher", "alone", "distilled"))
    return " / ".join(NOTHING if value is None else f"{value:.2f}" for value in values)


def _gain(published: dict[str, float | None]) -> float | None:
    alone, distilled = published["alone"], published["distilled"]
    return None if alone is None or distilled is None else distilled - alone


def _accuracies(results: list[dict[str, Any]]) -> list[float]:
    return [100 * result["top1_accuracy"] for result in results]


def _seconds(results: list[dict[str, Any]]) -> list[float]:
    return [result["train_seconds"] for result in results if "train_seconds" in result]
