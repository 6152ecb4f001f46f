"""The README and the pages behind it: short, their recipes load, their commands are accepted."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "launch/README.md"]
COMMANDS = ROOT / "docs/commands.md"
YOUR_DATA = ROOT / "docs/your-data.md"
MAX_BYTES = 7_000


def blocks(page, language):
    """Return the fenced code blocks of a page that are in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page):
    """Return the arguments of each `kdscale` command in a page's bash blocks."""
    return [words for block in blocks(page, "bash") for words in commands_of(block)]


def commands_of(block):
    """Return the arguments of each `kdscale` command in a bash block."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.rstrip("& "), comments=True) for line in lines]
    starts = [(line, line.index("kdscale")) for line in words if "kdscale" in line]
    return [line[start + 1 :] for line, start in starts if line[:1] != ["accelerate"]]


def recipes(page):
    """Return the TOML blocks of a page that are whole recipes, parsed."""
    found = [tomllib.loads(text) for text in blocks(page, "toml")]
    return [table for table in found if "name" in table]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= MAX_BYTES


def test_install_commands_begin_the_readme_and_install_what_the_project_offers():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    quickstart, tests = blocks(ROOT / "README.md", "bash")[:2]
    assert quickstart.rstrip().endswith("pip install --quiet . && .venv/bin/kdscale quickstart")
    assert "dev" in extras["optional-dependencies"]
    assert '-e ".[dev]"' in tests
    assert tests.rstrip().endswith("python -m pytest")


@pytest.mark.parametrize("page", [ROOT / "README.md", YOUR_DATA], ids=lambda page: page.name)
def test_recipe_of_the_page_loads(page):
    from kdscale.config import parse_recipe

    (table,) = recipes(page)
    recipe = parse_recipe(table, "mine")
    assert (recipe.name, recipe.views.count) == ("mine", 30)


def test_recipe_of_the_readme_has_twelve_lines():
    assert len(blocks(ROOT / "README.md", "toml")[0].strip().splitlines()) == 12


def test_readme_and_commands_page_have_commands():
    assert len(commands(ROOT / "README.md")) >= 3
    assert len(commands(COMMANDS)) >= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_page_are_accepted(page):
    """Each command exists and takes these options; nothing is run."""
    from kdscale.cli import cli

    for words in commands(page):
        command, rest = cli, words
        while isinstance(command, click.Group):
            if rest[0] in command.commands:
                command, rest = command.commands[rest[0]], rest[1:]
            else:  # `sweep RECIPE`: the group's command without a name
                command = next((one for one in command.commands.values() if one.hidden), None)
        assert command is not None, words
        command.make_parser(click.Context(command)).parse_args(rest)


def test_every_command_is_on_the_commands_page():
    from kdscale.cli import cli

    text = COMMANDS.read_text()
    names = [name for name in cli.commands if name not in ("cache", "sweep")]
    names += [f"cache {name}" for name in cli.commands["cache"].commands if name != "pull"]
    assert [name for name in names if f"kdscale {name}" not in text] == []


# ------------------------------------------------------------------ run as printed


@pytest.fixture
def folder(tmp_path, write_split):
    """A folder with a small RGB data set where the pages' recipes look for it."""
    random = np.random.default_rng(0)
    for split, count in (("train", 96), ("test", 32)):
        labels = np.arange(count) % 2
        pixels = random.integers(0, 120, (count, 32, 32, 3)) + 120 * labels[:, None, None, None]
        path = tmp_path / f"path/to/my-data/{split}.parquet"
        write_split(path, pixels.astype(np.uint8), labels, ["dark", "bright"])
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels[0].astype(np.uint8)).save(tmp_path / "photos/one.png")
    return tmp_path


def shortened(table):
    """Return a recipe of the pages with fewer views, fewer epochs and smaller images."""
    table["views"]["count"] = 3
    for operation in [*table["views"]["operations"], *table["data"].get("clean", [])]:
        if "size" in operation:
            operation["size"] = 32
    table["teacher"]["input"]["size"] = 32
    table["teacher"].get("train", {}).pop("pretrained", None)  # offline
    for section in (table["teacher"], table["student"]):
        if "train" in section:
            section["train"]["epochs"] = 1
    return table


@pytest.mark.slow
def test_commands_of_the_readme_run_as_printed(folder, kdscale_process):
    from kdscale.models.registry import create_model
    from kdscale.models.weights import save_weights

    (table,) = recipes(ROOT / "README.md")
    (folder / "mine.toml").write_text(tomli_w.dumps(shortened(table)))
    torch.manual_seed(0)
    teacher = create_model("torchvision/resnet50", num_classes=2, in_channels=3)
    save_weights(folder / "teacher.safetensors", teacher, metadata={})
    for words in commands(ROOT / "README.md")[-3:]:
        done = kdscale_process(*words, timeout=600)
        assert done.returncode == 0, f"{words}: {done.stderr}"
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_commands_of_the_commands_page_run_as_printed(folder, kdscale_process):
    (table,) = recipes(YOUR_DATA)
    table = shortened(table)
    table["teacher"]["model"] = table["student"]["model"] = (
        "cifar10-lightnn"  # seconds, not minutes
    )
    (folder / "mine.toml").write_text(tomli_w.dumps(table))
    added = next(tomllib.loads(text) for text in blocks(COMMANDS, "toml") if "[sweep]" in text)
    tuned = table | added | {"name": "tune", "data": table["data"] | added["data"]}
    (folder / "tune.toml").write_text(tomli_w.dumps(tuned))
    fewer = {"50": "4", "60": "3"}  # views in all; seconds of the bench
    whole, by_step, *others = blocks(COMMANDS, "bash")  # the teacher is trained once, by either
    for words in [*commands_of(by_step), *commands_of(whole), *commands_of("\n".join(others))]:
        if words[0] in ("quickstart", "push", "pull"):
            continue  # tests/commands run these, the last two against a server of their own
        answer = ["--yes"] if words[:2] == ["cache", "remove"] else []
        done = kdscale_process(*[fewer.get(word, word) for word in words], *answer, timeout=600)
        assert done.returncode == 0, f"{words}: {done.stderr}"
