"""Measure what a reader of the code pays: sizes, names, and the files that a piece of work enters.

    python benchmarks/structure.py [CHECKOUT] [--json] [--no-trace]

Sizes and names are counted in the syntax trees. The three paths are traced: a tiny experiment is
built and trained from, and the files of kdscale are noted in which a function is entered while one
optimizer step, one shard of a build, or one target's way from the store to the loss is at work,
each in the threads that do it. CHECKOUT is another checkout to measure, such as one of an earlier
commit; it is run by this interpreter.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PEOPLES_VERBS = ("asked", "kept", "shown", "told", "said")
"""Words of people where the field has its own; each stands for several of them."""


def measure(checkout: Path) -> dict[str, Any]:
    """Return the figures of the package in a checkout that need no run of it."""
    files = sorted((checkout / "kdscale").rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in files}
    functions = [one for tree in trees.values() for one in _functions(tree)]
    lengths = [function.end_lineno - function.lineno + 1 for function in functions]
    packages = _packages(checkout, files)
    return {
        "files": len(files),
        "lines": sum(one["lines"] for one in packages.values()),
        "lines_by_kind": dict(sum((_kinds(path, tree) for path, tree in trees.items()), Counter())),
        "packages": packages,
        "functions": len(functions),
        "function_lines_median": median(lengths),
        "function_lines_95th_percentile": quantiles(lengths, n=20)[-1],
        "functions_with_more_than_6_parameters": sum(_parameters(f) > 6 for f in functions),
        "public_functions_with_more_than_8_parameters": sorted(
            f.name for f in functions if _parameters(f) > 8 and not f.name.startswith("_")
        ),
        "peoples_verbs": dict(sum((_words(tree) for tree in trees.values()), Counter())),
        "file_names_twice": _twice(path.name for path in files if path.name != "__init__.py"),
        "type_names_twice": _twice(
            node.name
            for tree in trees.values()
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ),
    }


def _packages(checkout: Path, files: list[Path]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for path in files:
        parts = path.relative_to(checkout / "kdscale").parts
        one = found.setdefault(parts[0] if len(parts) > 1 else ".", {"files": 0, "lines": 0})
        one["files"] += 1
        one["lines"] += len(path.read_text().splitlines())
    return found


def _kinds(path: Path, tree: ast.Module) -> Counter[str]:
    """Count the lines of a file: code, docstrings (of fields, too), comments, blank ones."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    kinds = ["blank" if not one else "comment" if one[0] == "#" else "code" for one in lines]
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            first, last = node.lineno - 1, node.end_lineno
            kinds[first:last] = ["docstring"] * (last - first)
    return Counter(kinds)


def _functions(tree: ast.Module) -> Iterator[Any]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _parameters(function: Any) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(one.arg not in ("self", "cls") for one in named)


def _words(tree: ast.Module) -> Counter[str]:
    """Occurrences of people's verbs in identifiers and in docstrings."""
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            texts.append(node.id)
        elif isinstance(node, ast.Attribute):
            texts.append(node.attr)
        elif isinstance(node, ast.arg):
            texts.append(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            texts.append(node.name)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.append(str(node.value.value))  # docstrings, of fields too
    words = re.findall(r"[a-z]+", " ".join(texts).lower())
    return Counter(word for word in words if word in PEOPLES_VERBS)


def _twice(names: Iterator[str] | Any) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


# ------------------------------------------------------------------ the three paths, traced

_RECIPE = """
name = "structure"
[data]
source = "embedded:mnist-small"
[views]
operations = ["random_horizontal_flip"]
count = 2
[cache]
shard_samples = 4096
[teacher]
model = "mnist-mlp"
options = { hidden = 8 }
input = { mean = [0.1307], std = [0.3081] }
[teacher.train]
epochs = 1
global_batch_size = 1000
[student]
model = "mnist-mlp"
options = { hidden = 8 }
[student.train]
epochs = 2
global_batch_size = 1000
evaluate_every = 2
"""

_TRACER = r"""
import importlib, json, os, sys, threading
from pathlib import Path

names, command, out = json.loads(sys.argv[1]), sys.argv[2:-1], sys.argv[-1]
import kdscale
HOME = str(Path(kdscale.__file__).parent) + os.sep
entered, here = {name: set() for name in names}, threading.local()

def profile(frame, event, argument):
    active = getattr(here, "active", ())
    if event == "call" and active and frame.f_code.co_filename.startswith(HOME):
        for name in active:
            entered[name].add(frame.f_code.co_filename[len(HOME):])

def traced(name, function):
    def wrapper(*args, **keywords):
        here.active = [*getattr(here, "active", ()), name]
        try:
            found = function(*args, **keywords)
            return list(found) if hasattr(found, "__next__") else found
        finally:
            here.active.remove(name)
    return wrapper

for name, places in names.items():
    for place in places:
        module, _, path = place.partition(":")
        try:
            owner = importlib.import_module(module)
        except ImportError:
            continue
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part, None)
        if owner is not None and hasattr(owner, last):
            setattr(owner, last, traced(name, getattr(owner, last)))
threading.setprofile(profile)
sys.setprofile(profile)
from kdscale.cli import main
sys.argv = ["kdscale", *command]
try:
    main()
except SystemExit:
    pass
sys.setprofile(None)
json.dump({name: sorted(files) for name, files in entered.items()}, open(out, "w"))
"""

_ENTRANCES = {
    "training step": [
        "kdscale.data.loader:Loader.batch",
        "kdscale.data.loader:BatchLoader.batch",
        "kdscale.training.trainer:Trainer.losses_of",
        "kdscale.training.trainer:Trainer._update",
        "kdscale.training.optim:OptimizerStep.backward",
        "kdscale.training.optimizer_step:OptimizerStep.backward",
        "kdscale.engine.loop:Loop.loss_of",
        "kdscale.engine.loop:Loop._update",
    ],
    "shard": [
        "kdscale.building.shards:ShardBuilder.build_each",
        "kdscale.engine.builders.shards:ShardBuilder.build_each",
        "kdscale.cache.writer:ShardWriter.write",
    ],
    "cached target": [
        "kdscale.cache.reader:CacheReader.read_shard",
        "kdscale.cache.reader:CacheReader.read_view",
        "kdscale.target_sources.cached:CachedTargets.targets",
        "kdscale.target_sources.cached:CachedTargets.start_epoch",
        "kdscale.engine.sources.cached:CachedTargets.targets",
        "kdscale.engine.sources.cached:CachedTargets.start_epoch",
        "kdscale.losses.objective:Objective.__call__",
    ],
}


def trace(checkout: Path) -> dict[str, Any]:
    """Return the files that one training step, one shard and one cached target enter."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "recipe.toml").write_text(_RECIPE)
        (place / "tracer.py").write_text(_TRACER)
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}

        def run(pieces: list[str], *command: str) -> dict[str, list[str]]:
            names = {name: _ENTRANCES[name] for name in pieces}
            subprocess.run(
                [sys.executable, "tracer.py", json.dumps(names), *command, "out.json"],
                cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            found: dict[str, list[str]] = json.loads((place / "out.json").read_text())
            return found

        run([], "train", "recipe.toml", "--model", "teacher")
        files = run(["shard"], "cache", "build", "recipe.toml")
        run([], "train", "recipe.toml", "--targets", "cache", "--run", "warm")
        files |= run(["training step"], "train", "recipe.toml", "--targets", "cache", "--run", "a")
        files |= run(["cached target"], "train", "recipe.toml", "--targets", "cache", "--run", "b")
    lines = {name: sum(_lines(checkout, one) for one in found) for name, found in files.items()}
    return {
        name: {"files": len(found), "lines": lines[name], "names": found}
        for name, found in files.items()
    }


def _lines(checkout: Path, name: str) -> int:
    return len((checkout / "kdscale" / name).read_text().splitlines())


def _print(figures: dict[str, Any]) -> None:
    for name, figure in figures.items():
        if name == "packages":
            for package, of in figure.items():
                print(f"  {package:16} {of['files']:4} files {of['lines']:6} lines")
        elif name == "paths":
            for piece, of in figure.items():
                print(f"{piece}: {of['files']} files, {of['lines']} lines")
                print("  " + "\n  ".join(of["names"]))
        else:
            print(f"{name}: {figure}")


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", default=Path(__file__).parent.parent, type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-trace", action="store_true", help="only what needs no run")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    figures = measure(checkout)
    if not options.no_trace:
        figures["paths"] = trace(checkout)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures)


if __name__ == "__main__":
    main()
