"""Shell completion, by click: recipes by name, without the libraries that a command loads."""

import os
import subprocess
import sys

import pytest


def complete(words, *options):
    environment = {"_KDSCALE_COMPLETE": "bash_complete", "COMP_WORDS": f"kdscale {words}",
                   "COMP_CWORD": str(len(words.split(" ")))}  # fmt: skip
    command = [sys.executable, *options, "-c", "from kdscale.cli import main; main()"]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run tiny", ["plain,tiny-imagenet", "plain,tiny-imagenet-best"]),
        ("cache build quick", ["plain,quickstart"]),
        ("run mine.t", ["file,mine.t"]),
        ("quicks", ["plain,quickstart"]),
        ("train mnist --log", ["plain,--log-with"]),
    ],
)
def test_recipes_commands_and_options_are_completed(words, expected):
    assert complete(words).stdout.splitlines() == expected


def test_completion_imports_neither_torch_nor_pydantic():
    done = complete("run cifar10-t", "-X", "importtime")
    assert "plain,cifar10-tutorial" in done.stdout.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "pydantic", "zarr", "numpy"}
