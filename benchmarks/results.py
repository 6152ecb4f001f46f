"""Result tables: `collect` keeps what was measured as JSON, `render` writes the tables from it."""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from losses_table import losses_table
from systems import systems_summary, systems_tables

from kdscale.formatting import spread
from kdscale.report.table import Table
from kdscale.tables.evaluation_table import evaluation_tables
from kdscale.tables.results_table import ResultsRow, results_table
from kdscale.tables.timing_table import bench_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
LIBRARIES = ("torch", "torchvision", "accelerate", "datasets", "zarr", "numpy")
ORDER = {"teacher": 0, "alone": 1, "online": 2, "cache": 3}
STUDENTS = ("alone", "online", "cache")


# --------------------------------------------------------------------------- collect


def collect(
    source: Path, target: Path, title: str, command: str, notes: list[str], published: str
) -> None:
    """Keep a measurement with all that is needed to repeat it."""
    found = json.loads(source.read_text())
    document = {
        "title": title,
        "command": command,
        "commit": os.environ.get("COMMIT") or _commit(),
        "machine": _machine(),
        "versions": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "notes": notes,
        "published": published,
        "found": _without_paths(found),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")


def gather(results: list[Path]) -> dict[str, Any]:
    """Results of single runs, `runs/LABEL-seedN/result.json`, as one comparison by label."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results):
        label = path.parent.name.rpartition("-seed")[0]
        groups.setdefault(label, []).append(json.loads(path.read_text()))
    return {"groups": groups}


def _without_paths(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if not key.endswith("_path")}


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if "model name" in line]
        model = names[0] if names else model
    return f"{os.cpu_count()} CPU cores, {model}"


# --------------------------------------------------------------------------- render


def render(document: dict[str, Any]) -> str:
    """The page of one measurement."""
    found = document["found"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        f"# {document['title']}",
        "",
        _table(found),
        "",
        *[f"* {note}" for note in document["notes"]],
        f"* Machine: {document['machine']}; Python {document['python']}, {versions}.",
        f"* Commit {document['commit']}. Command:",
        "",
        "```bash",
        document["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


_COUNTS = (
    "{rounds} rounds of {steps_per_round} steps of batch {global_batch_size}; "
    "{build_rounds} rounds of {build_shards_per_round} shards of {build_shard_samples} samples; "
    "{num_threads} threads, {device}."
)


def _table(found: dict[str, Any]) -> str:
    if "systems" in found:
        return systems_tables(found["systems"], RESULTS)
    if "trials" in found:
        return _sweep_table(found)
    if "runs" in found:
        return evaluation_tables(found["runs"])
    if "rows" in found:
        return f"{results_table(_rows(found))}\n\n{_gain(found)}"
    if "groups" in found:
        return _groups_table(found["groups"])
    if "losses" in found:
        return losses_table(found["losses"])
    if "views" in found:
        return _views_table(found)
    if "encodings" in found:
        return _encodings_table(found["encodings"])
    if "digests" in found:
        return _digests_table(found["digests"])
    if "paces" in found:
        return _reading_tables(found)
    if "plans" in found:
        return _plans_table(found["plans"])
    if "codecs" in found:
        return _codecs_tables(found)
    if "cases" in found:
        return _syncs_table(found)
    if "decoding" in found:
        return _decoding_table(found)
    if "rounds" in found:
        return f"{bench_table(found)}\n\n{_COUNTS.format(**found)}"
    rows = [[key, _number(value)] for key, value in found.items()]
    return Table(["what", "value"], rows).text()


def _sweep_table(found: dict[str, Any]) -> str:
    """The trials of a sweep, best first, and what they took."""
    fields = found["fields"]
    lines = [
        [
            row["trial"],
            *[f"{100 * row[name]:.2f}" for name in ("value", "top1_accuracy")],
            f"{row['train_seconds']:.0f}",
            str(row["taken_over"] or ""),
            *[f"{row['parameters'][field]:g}" for field in fields],
        ]
        for row in sorted(found["rows"], key=lambda row: -row["value"])
    ]
    header = ["trial", "validation %", "test %", "training s", "workers killed"]
    table = Table([*header, *[field.rpartition(".")[2] for field in fields]], lines).text()
    took = (
        "{trials[finished]} trials, {train_seconds:,.0f} s of training in all; the teacher "
        "ran once, {build_seconds:,.0f} s; from the first command to the end "
        "{wall_seconds:,.0f} s."
    ).format(**found)
    return "\n\n".join([table, took, *_sweep_online(found)])


def _sweep_online(found: dict[str, Any]) -> list[str]:
    """What its students would have cost with the teacher at every step: timed steps, times."""
    if "bench" not in found:
        return []
    bench = json.loads((RESULTS / f"{found['bench']}.json").read_text())["found"]
    students, steps = found["trials"]["finished"], found["steps"]
    images = students * steps * bench["global_batch_size"]
    online, cached = (images / bench[f"{k}_images_per_second"] for k in ("online", "cached"))
    build = found["build_samples"] / bench["build_images_per_second"]
    return [
        f"Arithmetic, from steps timed on the idle machine ([bench]({found['bench']}.md)): "
        f"{students} students of {steps:,} steps of {bench['global_batch_size']} images take "
        f"{cached:,.0f} s from the cache, and the build of {found['build_samples']:,} answers "
        f"{build:,.0f} s; with the teacher at every step they would have taken {online:,.0f} s, "
        f"{online / (cached + build):.1f} times as long."
    ]


def _groups_table(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Kinds of runs side by side; the label's first word names who is compared with whom."""
    alone = {
        label.split(": ")[0]: results for label, results in groups.items() if "labels" in label
    }
    rows = []
    for label, results in groups.items():
        accuracy = [100 * result["top1_accuracy"] for result in results]
        base = {r["seed"]: 100 * r["top1_accuracy"] for r in alone.get(label.split(": ")[0], [])}
        gains = [100 * r["top1_accuracy"] - base[r["seed"]] for r in results if r["seed"] in base]
        shown = spread(gains, 2) if gains and "labels" not in label else ""
        macro = [
            spread([100 * result[name] for result in results], 2)
            for name in ("macro_precision", "macro_recall")
        ]
        rows.append([label, str(len(results)), spread(accuracy, 2), *macro, shown])
    header = ["student", "seeds", "top-1 %", "macro precision %", "macro recall %"]
    header.append("over labels alone, points, seed by seed")
    return Table(header, rows).text()


def _views_table(found: dict[str, Any]) -> str:
    rows = []
    for name, rates in found["views"].items():
        line = [name, f"{rates['kdscale_images_per_second']:,}"]
        if "ratio" in rates:
            faster = f"{rates[rates['faster'] + '_images_per_second']:,} ({rates['faster']})"
            low, high = rates["ratio_spread"]
            line += [faster, f"{rates['ratio']:.1f}", f"{low:.1f} .. {high:.1f}"]
        rows.append([*line, *[""] * (5 - len(line))])
    header = ["pipeline", "kdscale, images/s", "torchvision, images/s", "ratio", "spread"]
    counts = (
        "Batches of {batch_size}, {threads} threads against {workers} workers, {view_rounds} rounds"
    )
    return f"{Table(header, rows).text()}\n\n{counts.format(**found)} of {found['seconds']} s."


def _encodings_table(rows: dict[str, dict[str, Any]]) -> str:
    keys = ("kl_t1", "kl_t2", "kl_t4", "max_probability_error")
    cosines = ("gradient_cosine", "gradient_cosine_t2", "gradient_cosine_t4")
    header = ["encoding", "bytes", *[f"T²·KL, T {t}" for t in (1, 2, 4)], "largest error of p"]
    header += [*[f"cosine, T {t}" for t in (1, 2, 4)], "same top-1 %", "ECE %", "tail's error %"]
    lines = []
    for name, row in rows.items():
        line = [name, str(row["bytes_per_target"]), *[_number(row[key]) for key in keys]]
        line += [f"{row[key]:.5f}" for key in cosines]
        line += [
            f"{100 * row['top1_agreement']:.2f}",
            f"{100 * row['calibration_error_stored']:.2f}",
        ]
        tail = row.get("tail_interpolation_error")
        lines.append([*line, "" if tail is None else f"{100 * tail:.3f}"])
    if any(_STUDENT in row for row in rows.values()):
        header.append("student's top-1 %")
        for line, row in zip(lines, rows.values(), strict=True):
            line.append(f"{100 * row[_STUDENT]:.2f}" if _STUDENT in row else "")
    return Table(header, lines).text()


_STUDENT = "student_top1_accuracy"


def _reading_tables(found: dict[str, Any]) -> str:
    header = ["targets", "held, MB", "targets/s", "waited %", "longest, s", "to gather a batch, ms"]
    header += ["a core's time %", "bytes read / needed", "to begin, s"]
    lines = []
    for row in found["paces"]:
        numbers = [f"{row['targets_per_second']:,}", f"{100 * row['waited_share']:.2f}"]
        numbers += [f"{row['longest_wait_seconds']:.2f}", f"{row['gather_milliseconds']:.2f}"]
        numbers += [f"{100 * row['processor_share']:.0f}", f"{row['read_amplification']:.2f}"]
        held = f"{row['held_bytes'] / 1e6:,.0f}"
        lines.append([_kept(row), held, *numbers, f"{row['start_seconds']:.1f}"])
    steps = [
        [
            _kept({"windows": row["reading"]["num_windows"]}),
            f"{row['reading']['held_bytes'] / 1e6:.2f}",
            f"{row['cached_over_staged_time']:.3f}",
            "{:.2f} .. {:.2f}".format(*row["cached_over_staged_time_spread"]),
            f"{100 * row['reading']['waited_share']:.2f}",
            f"{row['reading']['read_amplification']:.2f}",
            f"{row['rounds']} of {row['steps_per_round']}",
        ]
        for row in found["benches"]
    ]
    words = ["targets", "held, MB", "step / with targets in memory", "smallest .. largest round"]
    words += ["waited %", "bytes read / needed", "rounds of steps"]
    paced = f"Asked for {found['paces'][0]['demanded_per_second']:,} targets a second:"
    return "\n\n".join([paced, Table(header, lines).text(), "Steps:", Table(words, steps).text()])


def _kept(row: dict[str, Any]) -> str:
    """How targets were held, and since when that was measured."""
    held = "resident" if row["windows"] == 1 else f"{row['windows']} windows"
    if row.get("cold"):
        held += ", files not in the page cache"
    after = row.get("epochs_before")
    return f"{held}, after {after} epochs" if after else held


def _digests_table(rows: dict[str, dict[str, int]]) -> str:
    header = ["what was compared", "samples", "pixels differ", "misses", "false alarms"]
    keys = ("samples", "pixels_differ", "misses", "false_alarms")
    return Table(header, [[n, *[f"{r[k]:,}" for k in keys]] for n, r in rows.items()]).text()


def _decoding_table(found: dict[str, Any]) -> str:
    """Speed of each way to decode, and of the main thread beside it."""
    header = [
        "workers",
        "main thread",
        "images/s",
        "core ms an image",
        "main thread's operations/s",
    ]
    lines = [
        [
            f"{row['number']} {row['workers']}", row["main thread"],
            f"{row['images_per_second']:.1f} ± {row['deviation']:.1f}",
            f"{row['core_ms_per_image']:.2f}", f"{row['operations_per_second']:,.0f}",
        ]
        for row in found["decoding"]
    ]  # fmt: skip
    return Table(header, lines).text()


def _syncs_table(found: dict[str, Any]) -> str:
    """Counts of each case, and before a slash those of an earlier commit."""
    earlier = {case["name"]: case for case in found.get("before", [])}
    keys = ("host_syncs", "blocking_copies", "async_copies", "kernels")
    header = ["one batch of", *[key.replace("_", " ") for key in keys]]
    lines = []
    for case in found["cases"]:
        before = earlier.get(case["name"])
        counts = [f"{before[key]} / {case[key]}" if before else str(case[key]) for key in keys]
        lines.append([case["name"], *counts])
    return Table(header, lines).text()


def _plans_table(plans: dict[str, dict[str, Any]]) -> str:
    lines = []
    for recipe, plan in plans.items():
        for name, measured in plan["measured"].items():
            predicted = plan["predicted"][name]
            ratio = mean(predicted) / measured
            size = name == "bytes"
            scale, digits, unit = (1e-6, 2, "MB") if size else (1, 2, "s")
            what = name.removesuffix("_seconds").replace("_", " ") + f", {unit}"
            shown = [spread([scale * one for one in predicted], digits), f"{scale * measured:.2f}"]
            lines.append([f"{recipe}: {what}", *shown, f"{ratio:.3f}"])
    return Table(["what", "predicted", "came true", "ratio"], lines).text()


_CODEC_KEYS = {
    "bytes a target": "bytes_per_target",
    "files": "files",
    "write MB/s": "write_megabytes_per_second",
    "write targets/s": "write_targets_per_second",
    "read targets/s": "read_targets_per_second",
    "256 rows ms": "gather_milliseconds",
}


def _codecs_tables(found: dict[str, Any]) -> str:
    """Codecs at one size, sizes of one codec, and both without a checksum."""
    usual = {"codec": "zstd 1", "shard_samples": 4096, "crc32c": True}
    parts = []
    for title, key in (("codec", "codec"), ("samples a shard", "shard_samples"),
                       ("crc32c", "crc32c")):  # fmt: skip
        fixed = {name: value for name, value in usual.items() if name != key}
        rows = [row for row in found["codecs"] if all(row[n] == v for n, v in fixed.items())]
        others = ", ".join(f"{name} {value}" for name, value in fixed.items())
        lines = [
            [row["encoding"], str(row[key]), *[f"{row[name]:,}" for name in _CODEC_KEYS.values()]]
            for row in sorted(rows, key=lambda row: _ENCODING_ORDER.index(row["encoding"]))
        ]
        header = ["encoding", title, *_CODEC_KEYS]
        parts.append(f"By {title} ({others}):\n\n{Table(header, lines).text()}")
    shape = "One view of {num_samples:,} samples, {num_classes} classes; {rounds} rounds."
    return "\n\n".join([*parts, shape.format(**found)])


_ENCODING_ORDER = ("float32", "float16", "int8", "int4", "topk")


def _rows(found: dict[str, Any]) -> list[ResultsRow]:
    return sorted((ResultsRow(**row) for row in found["rows"]), key=lambda row: ORDER[row.label])


def _gain(found: dict[str, Any]) -> str:
    """Distilled against alone, seed by seed."""
    rows = {row.label: row.results for row in _rows(found)}
    if "alone" not in rows or "cache" not in rows:
        return ""
    parts = []
    for label, words in (("cache", "cached"), ("online", "online")):
        if label in rows:
            pairs = zip(rows[label], rows["alone"], strict=False)
            gains = [100 * (a["top1_accuracy"] - b["top1_accuracy"]) for a, b in pairs]
            parts.append(f"{words} {spread(gains, 2)}")
    return f"Gain over the student alone, points of top-1, seed by seed: {'; '.join(parts)}."


def _number(value: object) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)


def pages() -> dict[Path, str]:
    """Every generated page and what it should hold."""
    found = {
        path.with_suffix(".md"): render(json.loads(path.read_text()))
        for path in sorted(RESULTS.glob("*.json"))
    }
    found[RESULTS / "README.md"] = _between(RESULTS / "README.md", "results", summary())
    systems = json.loads((RESULTS / "systems.json").read_text())["found"]["systems"]
    found[ROOT / "README.md"] = _between(
        ROOT / "README.md", "systems", systems_summary(systems, RESULTS)
    )
    return found


def _between(page: Path, name: str, table: str) -> str:
    """Return the text of a page with the table between its two marks replaced."""
    begin, end = f"<!-- {name}: benchmarks/results.py -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text().partition(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"


def summary() -> str:
    """Return the table of docs/results/README.md: one line for each recipe."""
    header = ["recipe", "published", "teacher", "alone", "online", "cached"]
    header += ["alone s", "online s", "cached s", "build s"]
    lines = []
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text())
        found = document["found"]
        if "rows" not in found or "trials" in found:
            continue
        rows = {row.label: row.results for row in _rows(found)}
        accuracy = [_spread_of(rows.get(label), "top1_accuracy", 100, 2) for label in ORDER]
        seconds = [_spread_of(rows.get(k), "train_seconds", 1, 0) for k in STUDENTS]
        build = f"{rows['cache'][0]['build_seconds']:.0f}"
        name = f"[{path.stem}]({path.stem}.md)"
        lines.append([name, document["published"], *accuracy, *seconds, build])
    return Table(header, lines).text()


def _spread_of(results: list[dict[str, Any]] | None, key: str, scale: float, digits: int) -> str:
    values = [scale * result[key] for result in results or () if key in result]
    return spread(values, digits) if values else ""


def main() -> None:
    """Collect one measurement, or render all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="verb", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("source", type=Path)
    collecting.add_argument("target", type=Path)
    collecting.add_argument("--title", required=True)
    collecting.add_argument("--command", required=True)
    collecting.add_argument("--note", action="append", default=[])
    collecting.add_argument("--published", default="", help="teacher / alone / distilled")
    commands.add_parser("render")
    commands.add_parser("gather").add_argument("results", nargs="+", type=Path)
    a = parser.parse_args()
    if a.verb == "gather":
        print(json.dumps(gather(a.results), indent=1))
        return
    if a.verb == "collect":
        collect(a.source, a.target, a.title, a.command, a.note, a.published)
        return
    for path, text in pages().items():
        path.write_text(text)
        print(path.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
