"""Run folders as `kdscale train`, `run` and `evaluate` leave them, with numbers made up."""

import json

import numpy as np
import tomli_w

DIGITS = [str(digit) for digit in range(10)]
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def evaluation(names, accuracy, seed=0, *, samples=2000, parameters=100_000, **changes):
    """What an evaluation holds, of a model that is right in about this share of cases."""
    random = np.random.default_rng([seed, len(names)])
    num_classes = len(names)
    labels = np.arange(samples) % num_classes
    skill = np.clip(accuracy + random.normal(0, 0.03, num_classes), 0.02, 1)[labels]
    wrong = (labels + random.geometric(0.4, samples)) % num_classes
    predictions = np.where(random.random(samples) < skill, labels, wrong)
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, predictions), 1)
    hits, predicted, total = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    sure = np.clip(random.beta(6, 1.2, samples), 1 / num_classes, 1)
    place = np.minimum((sure * 15).astype(int), 14)
    right = (random.random(samples) < sure * 0.93).astype(float)
    counts = np.bincount(place, minlength=15)
    found = {
        "version": 1,
        "model": "made-up",
        "role": "student",
        "num_samples": samples,
        "num_classes": num_classes,
        "class_names": list(names),
        "top1_accuracy": float(hits.sum() / samples),
        "top5_accuracy": min(1.0, float(hits.sum() / samples) + 0.02),
        "macro_precision": float((hits / np.maximum(predicted, 1)).mean()),
        "macro_recall": float((hits / np.maximum(total, 1)).mean()),
        "calibration_error": 0.031,
        "calibration": {
            "bins": 15,
            "confidence": _means(place, sure, counts),
            "accuracy": _means(place, right, counts),
            "samples": counts.tolist(),
        },
        "confusion": confusion.tolist(),
        "per_class": [
            {"precision": float(h / max(p, 1)), "recall": float(h / max(t, 1)), "samples": int(t)}
            for h, p, t in zip(hits, predicted, total, strict=True)
        ],
        "agreement": 0.97,
        "teacher_sha256": "39f09b9e",
        "num_parameters": parameters,
        "weight_bytes": 4 * parameters,
        "peak_activation_bytes": {"1": 12_544, "64": 802_816},
        "latency": {
            batch: {"median_seconds": scale * parameters / 1e9, "p95_seconds": scale * parameters
                    / 0.8e9, "rounds": 50}
            for batch, scale in (("1", 1.0), ("64", 20.0))
        },
        "device": "cpu",
        "device_name": "Imagined(R) Processor",
        "num_threads": 1,
        "precision": "float32",
        "library_versions": {"kdscale": "0.1.0", "torch": "2.15.0"},
    }  # fmt: skip
    return found | changes


def _means(place, values, counts):
    return (np.bincount(place, values, 15) / np.maximum(counts, 1)).tolist()


def recipe(name="made-up", **changes):
    """A resolved recipe's tables; `changes` are merged in by dotted name."""
    table = {
        "name": name,
        "data": {"source": "somewhere/images", "test_split": "test"},
        "views": {"operations": [], "count": 3},
        "cache": {"encoding": "float16"},
        "teacher": {"model": "large"},
        "student": {"model": "small", "train": {"epochs": 6, "learning_rate": 0.01}},
        "loss": {"kind": "kd", "temperature": 4.0},
        "ensemble": {"caches": []},
    }
    for key, value in changes.items():
        place = table
        *sections, field = key.split("__")
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return table


def write_run(
    folder,
    kind="cache",
    seed=0,
    *,
    accuracy=0.9,
    names=DIGITS,
    table=None,
    evaluated=True,
    finished=True,
    seconds=10.0,
    validation=None,
    epochs=6,
    **result,
):
    """A run folder; returns it."""
    folder.mkdir(parents=True)
    random = np.random.default_rng([seed, len(kind)])
    parameters = 1_200_000 if kind == "teacher" else 270_000
    targets = {"teacher": "none", "alone": "none", "online": "teacher", "cache": "cache"}[kind]
    role = "teacher" if kind == "teacher" else "student"
    write_json(folder / "run.json", {"model": role, "targets": targets, "seed": seed})
    write_json(folder / "content.json", {"dataset": "d", "test": "t"})
    (folder / "recipe.toml").write_text(tomli_w.dumps(table or recipe()), encoding="utf-8")
    records = []
    for epoch in range(1, epochs + 1):
        loss = 3.0 / epoch + 0.02 * random.normal()
        reached = accuracy * (1 - 0.6**epoch) / (1 - 0.6**epochs)
        records.append(
            {
                "step": 10 * epoch,
                "epoch": float(epoch),
                "loss": loss,
                "train_seconds": seconds / epochs * epoch,
            }
        )
        records.append({"epoch": float(epoch), "split": "test", "top1_accuracy": reached})
        if validation is not None:
            value = validation * reached / accuracy
            records.append({"epoch": float(epoch), "split": "validation", "top1_accuracy": value})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    found = evaluation(names, accuracy, seed, parameters=parameters, role=role)
    if evaluated:
        write_json(folder / "evaluation.json", found)
    if finished:
        cached = {"cache": "0123456789abcdef", "build_seconds": 12.5} if kind == "cache" else {}
        shares = ("top1_accuracy", "top5_accuracy", "macro_precision", "macro_recall")
        write_json(
            folder / "result.json",
            {key: found[key] for key in shares}
            | {"train_seconds": seconds, "num_parameters": parameters, "targets": targets,
               "seed": seed, "role": role, "model": "large" if role == "teacher" else "small",
               "epochs": epochs, "num_processes": 1, "device": "cpu"}
            | cached
            | result,
        )  # fmt: skip
    return folder


def write_whole_recipe(folder, *, names=DIGITS, seeds=3, online=True, accuracy=0.9, **options):
    """What `kdscale run` leaves: teacher, students of three kinds, a table."""
    folder.mkdir(parents=True)
    table = options.get("table") or recipe()
    (folder / "recipe.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    kinds = {"alone": (-0.02, 10.0), "cache": (0.0, 10.4)} | (
        {"online": (0.001, 41.0)} if online else {}
    )
    write_run(folder / "teacher", "teacher", accuracy=min(accuracy + 0.04, 1), names=names,
              seconds=62.0, **options)  # fmt: skip
    for kind, (ahead, seconds) in kinds.items():
        for seed in range(seeds):
            write_run(folder / f"{kind}-seed{seed}", kind, seed, accuracy=accuracy + ahead,
                      names=names, seconds=seconds + seed / 10, **options)  # fmt: skip
    return folder


def write_sweep(folder, *, trials=12, **options):
    """What `kdscale sweep` leaves, but for its database."""
    for number in range(trials):
        temperature = (1.0, 2.0, 4.0, 8.0)[number % 4]
        rate = 10 ** -(1 + number / trials * 2)
        kind = ("kd", "dkd")[number % 2]
        good = 0.9 - 0.01 * abs(temperature - 4) - 0.002 * number
        table = recipe(
            loss__temperature=temperature, student__train__learning_rate=rate, loss__kind=kind
        )
        write_run(folder / "trials" / f"{number:05}", "cache", accuracy=good, table=table,
                  validation=good - 0.003, finished=number != trials - 1, evaluated=False,
                  **options)  # fmt: skip
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe()), encoding="utf-8")
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
