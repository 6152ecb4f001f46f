"""Subject and environment of the runs: data, models, machine, versions, cache."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kdscale.formatting import bytes_text, duration_text, number_of
from kdscale.report.fields import name_text, tables_of
from kdscale.report.model import Comparison

Fact = tuple[str, str]
"""The name of something and its value, as text."""


def subject(study: Comparison) -> list[Fact]:
    """Return data set, teacher, student, date and machine of the runs."""
    found: dict[str, list[str]] = {name: [] for name in _SUBJECT}
    for run in study.runs:
        data, metrics = tables_of(run.recipe, "data"), run.metrics
        measured = run.evaluation.environment if run.evaluation else {}
        if "source" in data:
            found["Data set"].append(name_text(str(data["source"])))
        for role in ("teacher", "student"):
            model = tables_of(run.recipe, role).get("model")
            if model is not None:
                found[role.capitalize()].append(name_text(str(model)))
        machine = measured.get("device_name") or metrics.get("device")
        if machine is not None:
            found["Machine"].append(str(machine))
    dates = sorted(run.date for run in study.runs if run.date is not None)
    if dates:
        found["Date"] = [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"]
    return [(name, ", ".join(dict.fromkeys(values))) for name, values in found.items() if values]


_SUBJECT = ("Data set", "Teacher", "Student", "Date", "Machine")


def environment(study: Comparison) -> list[Fact]:
    """Return machine, versions and initial weights of the runs, all values where they differ."""
    found: dict[str, list[str]] = {}
    for run in study.runs:
        for name, value in _of_run(
            run.metrics, run.evaluation.environment if run.evaluation else {}
        ):
            found.setdefault(name, []).append(value)
    return [(name, "; ".join(dict.fromkeys(values))) for name, values in found.items()]


def _of_run(metrics: Any, measured: Any) -> Iterator[Fact]:
    names = {
        "device": measured.get("device_name") or measured.get("device") or metrics.get("device"),
        "threads for latency": measured.get("num_threads"),
        "precision": measured.get("precision"),
        "training processes": metrics.get("num_processes"),
    }
    yield from ((name, str(value)) for name, value in names.items() if value is not None)
    begun = metrics.get("pretrained")
    if isinstance(begun, dict):
        sha256 = begun.get("sha256")
        how = f"SHA-256 {sha256}" if sha256 else "not available, so trained from scratch"
        yield f"{metrics.get('model', 'model')} initialized from", f"{begun.get('source')}, {how}"
    versions = measured.get("library_versions")
    if isinstance(versions, dict):
        yield "versions", _versions(versions)


def _versions(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def cache_facts(study: Comparison) -> list[Fact]:
    """Return content, encoding, fidelity and build time of the cache."""
    manifest = study.manifest
    if manifest is None:
        return []
    teacher, fidelity, build = manifest.teacher, manifest.fidelity, manifest.build
    facts = [
        ("images", f"{manifest.dataset['source']}, split {manifest.dataset['split']}"),
        ("holds", f"{number_of(manifest.num_views, 'view')} of "
         f"{number_of(manifest.num_samples, 'image')}, "
         f"{number_of(manifest.num_classes, 'class', 'classes')}"),
        ("views", _operations(manifest.views)),
        ("teacher", f"{teacher['model']}, {teacher['precision']}"),
        ("weights, SHA-256", str(teacher["weights_sha256"])),
        ("encoding", f"{manifest.encoding}, {manifest.bytes_per_target} bytes per target"),
    ]  # fmt: skip
    if "bytes" in build:
        facts.append(("bytes", bytes_text(build["bytes"])))
    if "seconds" in build:
        by = number_of(int(build.get("num_processes", 1)), "process", "processes")
        facts.append(("build", f"{duration_text(build['seconds'])}, {by}"))
    if "top1_agreement" in fidelity:
        facts.append(
            ("fidelity", f"same top-1 as the teacher in {100 * fidelity['top1_agreement']:.2f} %, "
             f"probabilities differ by at most {fidelity['max_probability_error']:.1e}")
        )  # fmt: skip
    versions = _versions(manifest.versions)
    if versions and ("versions", versions) not in environment(study):
        facts.append(("versions", versions))
    return [*facts, ("identity", manifest.id)]


def _operations(views: Any) -> str:
    words = [_operation(dict(one)) for one in views["operations"]]
    return (" + ".join(words) or "unchanged images") + f", seed {views['seed']}"


def _operation(one: dict[str, Any]) -> str:
    name = str(one.pop("name", "?")).replace("_", " ")
    one.pop("libraries", None)
    settings = ", ".join(f"{k.replace('_', ' ')} {json.dumps(v)}" for k, v in one.items())
    return f"{name} ({settings})" if settings else name
