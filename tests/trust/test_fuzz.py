"""Malformed files of every kind that kdscale reads, drawn with a fixed seed.

Whatever a file holds, the command that reads it ends with exit code 0, 1 or 2: no traceback, no
hang, no gigabytes, and nothing is written outside the folders that it was given.
"""

import shutil
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import pytest
import sandbox
import tomli_w
from malformed import KINDS, SWEEP


def _outside(folder):
    """What no command may touch."""
    (folder / "outside/folder").mkdir(parents=True)
    (folder / "outside/victim.txt").write_text("as it was")
    (folder / "outside/folder/other.txt").write_text("as it was, too")


def _plant_link(draw, box):
    """Replace a file or a folder by a link to something outside; what a user names may be one."""
    found = sorted(path for path in box.glob("*/**/*") if path != box / "root/tiny.zarr")
    if not found:
        return
    path = draw.choice(found)
    is_folder = path.is_dir()
    shutil.rmtree(path) if is_folder else path.unlink()
    path.symlink_to(box.parent / "outside" / ("folder" if is_folder else "victim.txt"))


@dataclass(frozen=True)
class Case:
    """Damaged files in `folder/box`, beside `folder/outside`, and a command that reads them."""

    folder: Path
    args: tuple[str, ...]
    outside: dict[str, bytes | None]

    def fault(self, done):
        """What is wrong with the command's outcome, in words; None if nothing is."""
        wrote = sandbox.listing(self.folder / "outside") != self.outside
        if wrote or len(list(self.folder.iterdir())) != 2:
            return f"wrote outside; {done.fault or done.stderr}"
        if done.exit_code and not (done.stderr + done.stdout).strip():
            return done.fault or "no message"
        return done.fault


def _lay_out(name, number, material, folder):
    """A case of a kind: the same one for the same number."""
    kind, draw = KINDS[name], Random(f"{name} {number}")
    box = folder / "box"
    box.mkdir(parents=True)
    for part in kind.parts:
        copy = shutil.copytree if (material / part).is_dir() else shutil.copy
        copy(material / part, box / part)
    kind.damage(draw, box)
    if draw.random() < 0.1:
        _plant_link(draw, box)
    _outside(folder)
    args = kind.commands[number % len(kind.commands)]
    return Case(folder, args, sandbox.listing(folder / "outside"))


def _fuzz(name, numbers, material, folder):
    cases = [_lay_out(name, number, material, folder / str(number)) for number in numbers]
    calls = [sandbox.Call(partial(sandbox.main, *one.args), one.folder / "box") for one in cases]
    codes, faults = Counter(), []
    for case, done in zip(cases, sandbox.run_all(calls), strict=True):
        codes[done.exit_code] += 1
        if fault := case.fault(done):
            faults.append(f"{name} {case.folder.name}: {' '.join(case.args[:3])}: {fault}")
    outcomes = ", ".join(f"exit {code}: {count}" for code, count in sorted(codes.items()))
    print(f"\n{name:20} {outcomes}; faults: {len(faults)}")  # noqa: T201  (a table, with -s)
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


@pytest.fixture(scope="module")
def swept(material, tmp_path_factory):
    """The material, with a finished sweep of two trials of the recipe s.toml."""
    folder = Path(shutil.copytree(material, tmp_path_factory.mktemp("swept") / "material"))
    recipe = tomllib.loads((folder / "r.toml").read_text())
    recipe["sweep"] = {"space": {"loss": {"temperature": [1.0, 4.0]}}}
    (folder / "s.toml").write_text(tomli_w.dumps(recipe))
    done = sandbox.run_command(*SWEEP, cwd=folder)
    assert (done.exit_code, done.fault) == (0, None), done.stderr
    return folder


FEW, MANY = 12, 32
"""Cases of each of 16 kinds: 192 by default, 320 more of a thorough run."""


@pytest.mark.parametrize("name", KINDS)
def test_malformed_files_end_in_a_stated_exit_code(swept, name, tmp_path):
    _fuzz(name, range(FEW), swept, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_more_malformed_files_end_in_a_stated_exit_code(swept, name, tmp_path):
    _fuzz(name, range(FEW, MANY), swept, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1300, 50))
@pytest.mark.parametrize("name", KINDS)
def test_thousands_of_malformed_files(swept, name, first, tmp_path):
    _fuzz(name, range(first, first + 50), swept, tmp_path)
