"""The shape of the project: who imports what, how fast help answers, what its pages list."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kdscale"
RECIPES = sorted(path.stem for path in (PACKAGE / "recipes").glob("*.toml"))
HELP_SECONDS = 1.5  # 0.3 is the aim; a loaded machine is slower


def run(*command, timeout=120):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def loaded_after(code, heavy):
    """Those of `heavy` that a fresh interpreter holds after running `code`."""
    ask = f"import sys; print(*sorted(set({sorted(heavy)!r}) & sys.modules.keys()))"
    done = run(sys.executable, "-c", f"{code}\n{ask}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ------------------------------------------------------------------ imports


def test_import_contracts_hold():
    done = run(Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_command_line_imports_nothing_heavy():
    heavy = {
        "torch", "torchvision", "zarr", "datasets", "accelerate", "pydantic", "numpy", "matplotlib",
    }  # fmt: skip
    assert loaded_after("import kdscale.cli", heavy) == []


def test_cache_imports_no_torch():
    code = (
        "import importlib, pkgutil, kdscale.cache\n"
        "modules = list(pkgutil.walk_packages(kdscale.cache.__path__, 'kdscale.cache.'))\n"
        "assert modules\n"
        "for module in modules: importlib.import_module(module.name)"
    )
    heavy = {"torch", "torchvision", "datasets", "accelerate", "safetensors"}
    assert loaded_after(code, heavy) == []


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run(sys.executable, "-m", "kdscale", "--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage:")
    assert min(seconds) < HELP_SECONDS, f"best of three: {seconds}"


# ------------------------------------------------------------------ recipes


def test_recipes_come_with_the_package():
    assert RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_by_name_and_by_path(name):
    from kdscale.config import load_recipe

    by_path = load_recipe(str(PACKAGE / "recipes" / f"{name}.toml"))
    assert load_recipe(name) == by_path


# ------------------------------------------------------------------ names


def test_no_file_is_named_after_nothing():
    nothing = {"utils", "util", "helpers", "helper", "common", "misc"}
    files = [path for top in ("kdscale", "tests", "benchmarks") for path in (ROOT / top).rglob("*")]
    assert sorted(str(path) for path in files if path.stem.strip("_") in nothing) == []


# ------------------------------------------------------------------ the list of folders


def folders_and_files():
    """The packages of kdscale and its top-level modules, as the page writes them."""
    folders = {
        f"{path.relative_to(PACKAGE).as_posix()}/"
        for path in PACKAGE.rglob("*")
        if path.is_dir() and any(path.glob("*.py"))
    }
    files = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    return folders | files | {"recipes/", "assets/"}


def test_architecture_page_lists_each_folder_once():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted(folders_and_files())


# ------------------------------------------------------------------ layers and walks


def section(title):
    """Return the part of the architecture page below a heading."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    return re.split(r"^##+ ", page.partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def test_architecture_page_has_the_layers_that_the_linter_checks():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [one["layers"] for one in contracts["contracts"] if one["id"] == "layers"]
    assert re.findall(r"^ {4}(?:-> | {3})(.+)$", section("Layers"), re.MULTILINE) == layers


WALKS = {
    "One training step": "training step",
    "One shard": "shard",
    "The life of a cached target": "cached target",
}


def files_of_walk(title):
    return set(re.findall(r"`([\w/]+\.py)`", section(title)))


@pytest.mark.parametrize("title", WALKS)
def test_files_of_a_walk_exist(title):
    assert files_of_walk(title)
    assert sorted(name for name in files_of_walk(title) if not (PACKAGE / name).is_file()) == []


@pytest.mark.slow
def test_walks_name_the_files_that_are_entered_at_run_time():
    done = run(sys.executable, "benchmarks/structure.py", "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    traced = json.loads(done.stdout)["paths"]
    for title, path in WALKS.items():
        assert files_of_walk(title) == set(traced[path]["names"]), title


def test_package_is_imported_without_a_warning():
    done = run(sys.executable, "-W", "error", "-c", "import kdscale")
    assert (done.returncode, done.stderr) == (0, "")
