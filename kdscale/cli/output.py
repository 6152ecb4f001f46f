"""Results on standard output, printed once by all processes of a launch."""

import json
from typing import Any

import click

from kdscale.cli.group import is_main_process


def print_text(text: str, *, everywhere: bool = False) -> None:
    """Print lines.

    Args:
        text: the lines.
        everywhere: print in every process, whatever RANK is: for commands that only read.
    """
    if everywhere or is_main_process():
        click.echo(text)


def print_json(value: object, *, everywhere: bool = False) -> None:
    """Print one JSON object."""
    print_text(json.dumps(value, indent=2), everywhere=everywhere)


def print_found(found: object, text: str, *, as_json: bool, everywhere: bool = False) -> None:
    """Print the result of a command: one JSON object with --json, else a text."""
    if as_json:
        print_json(found, everywhere=everywhere)
    else:
        print_text(text, everywhere=everywhere)


def outline(value: Any, indent: str = "") -> str:
    """Return a JSON object as indented lines."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", outline(item, indent + "  ")]
        else:
            text = item if isinstance(item, str) else json.dumps(item)
            lines.append(f"{indent}{key}: {text if len(text) <= 200 else text[:197] + '…'}")
    return "\n".join(lines)
