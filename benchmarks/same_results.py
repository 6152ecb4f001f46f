"""Do two checkouts give the same weights and the same cache, bit for bit?

    python benchmarks/same_results.py BEFORE AFTER [--data PATH]

For the quickstart's recipe (shortened), and with --data (a copy of CIFAR-10) for two epochs of
`cifar10-tutorial-best` on three of its classes, both checkouts train a teacher, build the cache and
train a student alone, from the cache and online, one thread each. Compared are all tensors of all
weights, and the stored bytes of the cache's arrays: of targets, digests, labels and image keys, not
of commit records, which hold times. Prints a line for each comparison; the exit code is 1 if one
differs.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

STUDENTS = {"alone": "none", "cached": "cache", "online": "teacher"}


def trained(checkout: Path, recipe: list[str], folder: Path) -> dict[str, str]:
    """Run a recipe's trainings and build with a checkout; return a digest of each result."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    folder.mkdir()

    def kdscale(*command: str) -> None:
        subprocess.run(
            [sys.executable, "-c", "from kdscale.cli import main; main()", *command],
            cwd=folder, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip

    teacher = folder / "teacher" / "weights.safetensors"
    kdscale("train", *recipe, "--model", "teacher", "--run", "teacher")
    given = ["--set", f"teacher.weights={teacher}"]
    kdscale("cache", "build", *recipe, *given)
    for name, targets in STUDENTS.items():
        kdscale("train", *recipe, *given, "--targets", targets, "--run", name)
    weights = {name: folder / name / "weights.safetensors" for name in ("teacher", *STUDENTS)}
    return {name: tensors_digest(path) for name, path in weights.items()} | {
        f"cache: {name}": digest for name, digest in arrays(folder / "cache").items()
    }


def tensors_digest(path: Path) -> str:
    """Hash names, types, shapes and bytes of a file's tensors, not its metadata."""
    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return digest.hexdigest()


def arrays(root: Path) -> dict[str, str]:
    """Hash the stored chunks of each array of the only cache below a root."""
    (cache,) = root.glob("*.zarr")
    found: dict[str, str] = {}
    for metadata in sorted(cache.glob("*/zarr.json")):
        name = metadata.parent.name
        if name == "commits":
            continue
        digest = hashlib.sha256()
        for chunk in sorted(path for path in (cache / name / "c").rglob("*") if path.is_file()):
            digest.update(str(chunk.relative_to(cache)).encode() + chunk.read_bytes())
        found[name] = digest.hexdigest()
    return found


def main() -> None:
    """Compare two checkouts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--data", type=Path, help="a copy of CIFAR-10")
    options = parser.parse_args()
    epochs = [f"{part}.train.epochs=2" for part in ("teacher", "student")]
    recipes = {"quickstart": ["quickstart", *_set(*epochs)]}
    if options.data is not None:
        classes = 'data.classes=["cat","dog","ship"]'
        recipes["cifar10-tutorial-best"] = [
            "cifar10-tutorial-best", "--data", str(options.data.resolve()), *_set(*epochs, classes)
        ]  # fmt: skip
    differing = 0
    for recipe, command in recipes.items():
        with tempfile.TemporaryDirectory() as folder:
            sides = [
                trained(checkout.resolve(), command, Path(folder, side))
                for side, checkout in (("before", options.before), ("after", options.after))
            ]
        for name in sorted(sides[0].keys() | sides[1].keys()):
            same = sides[0].get(name) == sides[1].get(name)
            differing += not same
            print(f"{recipe}: {name}: {'identical' if same else 'DIFFERENT'}", flush=True)
    sys.exit(1 if differing else 0)


def _set(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


if __name__ == "__main__":
    main()
