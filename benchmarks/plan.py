"""Does `kdscale cache plan` tell the truth? What it predicts, and then the build and the students.

Plans a recipe several times, builds its cache, and trains a student alone, from the cache and with
the teacher at every step, each in a process of its own. Prints JSON for
`benchmarks/results.py collect`; several recipes after one another are one table.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STUDENTS = {"supervised": "none", "cached": "cache", "online": "teacher"}


class Commands:
    """`kdscale` commands about one recipe."""

    def __init__(self, prefix: str, recipe: list[str], cache_root: Path) -> None:
        self._prefix = [*shlex.split(prefix), sys.executable, "-m", "kdscale"]
        self._recipe, self._root = recipe, ["--cache-root", str(cache_root)]

    def run(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """What a command prints."""
        full = [*self._prefix, *command, *self._recipe, *self._root, *options]
        return subprocess.run(full, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(commands: Commands, plans: int, folder: Path) -> dict[str, Any]:
    """Predictions and what came true, in seconds."""
    cache = str(folder / "cache.zarr")
    found = [
        json.loads(commands.run("cache", "plan", options=("--json", "--cache", cache)))
        for _ in range(plans)
    ]
    commands.run("cache", "build", options=("--cache", cache))
    manifest = json.loads((folder / "cache.zarr/zarr.json").read_text())["attributes"]["kdscale"]
    size = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
    measured = {"build_seconds": manifest["build"]["seconds"], "bytes": size}
    for kind, targets in STUDENTS.items():
        run = folder / kind
        named = ("--cache", cache) if targets == "cache" else ()
        commands.run("train", options=("--targets", targets, "--run", str(run), *named))
        result = json.loads((run / "result.json").read_text())
        measured[f"{kind}_student_seconds"] = result["train_seconds"]
    return {
        "epochs": found[0]["epochs"],
        "break_even_students": [one["break_even_students"] for one in found],
        "predicted": {name: [one[name] for one in found] for name in measured},
        "measured": measured,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    parser.add_argument("--plans", type=int, default=3)
    parser.add_argument("--prefix", default="", help="before each command, such as taskset -c 0")
    parser.add_argument("--after", type=Path, help="what this printed of other recipes")
    arguments = parser.parse_args()
    recipe = [arguments.recipe, *(part for one in arguments.overrides for part in ("--set", one))]
    if arguments.data is not None:
        recipe += ["--data", arguments.data]
    commands = Commands(arguments.prefix, recipe, arguments.cache_root)
    before = json.loads(arguments.after.read_text())["plans"] if arguments.after else {}
    with tempfile.TemporaryDirectory(prefix="kdscale-plan-") as folder:
        found = measure(commands, arguments.plans, Path(folder))
    print(json.dumps({"plans": {**before, arguments.recipe: found}}, indent=1))


if __name__ == "__main__":
    main()
