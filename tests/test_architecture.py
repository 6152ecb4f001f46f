"""The shape of the project: who imports what, how fast help answers, what the README lists."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kdscale"
RECIPES = sorted(path.stem for path in (PACKAGE / "recipes").glob("*.toml"))
HELP_SECONDS = 1.5  # 0.3 is the aim; a loaded machine is slower


def run(*command):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
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
    heavy = {"torch", "torchvision", "zarr", "datasets", "accelerate", "pydantic", "numpy"}
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


# ------------------------------------------------------------------ the README's tree


def tree_of(readme):
    """Paths named by the fenced block under "## The tree": one a line, depth by indentation."""
    _, heading, after = readme.partition("\n## The tree\n")
    assert heading, 'README.md has no heading "## The tree"'
    section = after.partition("\n## ")[0]
    block = section.split("```")[1].partition("\n")[2]
    paths, folders = [], []  # folders: (indentation, path) from the root down to this line
    for line in block.translate(str.maketrans("│├└─", "    ")).splitlines():
        if not line.strip():
            continue
        indentation = len(line) - len(line.lstrip())
        name = line.split()[0]
        while folders and folders[-1][0] >= indentation:
            folders.pop()
        path = (folders[-1][1] if folders else "") + name
        if name.endswith("/"):
            folders.append((indentation, path))
        paths.append(path)
    if "kdscale/" not in paths:  # the block may start inside the package
        paths = [f"kdscale/{path}" for path in paths]
    return paths


def real_tree():
    """The package's modules and top folders; `__init__.py` needs no line of its own."""
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    folders = {
        f"kdscale/{path.name}/"
        for path in PACKAGE.iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    return modules | folders


def test_readme_tree_names_what_exists():
    named = tree_of((ROOT / "README.md").read_text())
    assert len(named) == len(set(named)), "a path is named twice"
    gone = sorted(path for path in named if not any(ROOT.glob(path.rstrip("/"))))
    unnamed = sorted(real_tree() - set(named))
    assert (gone, unnamed) == ([], []), f"named but not there: {gone}; not named: {unnamed}"


TREE_BODY = """
  cli.py           the commands
  cache/           what is on disk
    layout.py      arrays
  recipes/         named experiments
launch/            how processes are started
  cpu.sh           on a CPU
"""
TREE_PATHS = [
    "kdscale/",
    "kdscale/cli.py",
    "kdscale/cache/",
    "kdscale/cache/layout.py",
    "kdscale/recipes/",
    "launch/",
    "launch/cpu.sh",
]


def test_tree_is_read_by_its_indentation():
    readme = f"# x\n\n## The tree\n\nWords.\n\n```text\nkdscale/{TREE_BODY}```\n\n## Next\n"
    assert tree_of(readme) == TREE_PATHS


def test_tree_may_start_inside_the_package():
    block = "cli.py       commands\ncache/       disk\n  layout.py  arrays\n"
    readme = f"# x\n\n## The tree\n\n```\n{block}```\n"
    assert tree_of(readme) == ["kdscale/cli.py", "kdscale/cache/", "kdscale/cache/layout.py"]


def test_package_is_imported_from_this_tree():
    """Or all of the above would have looked at another kdscale than the tests run."""
    spec = importlib.util.find_spec("kdscale")
    assert spec is not None
    assert Path(str(spec.origin)).parent == PACKAGE
