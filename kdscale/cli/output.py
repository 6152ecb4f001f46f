"""What a script reads goes to standard output, once."""

import json
from typing import Any

import click

from kdscale.cli.group import is_main_process


def print_text(text: str, *, everywhere: bool = False) -> None:
    """Lines for people.

    Args:
        text: the lines.
        everywhere: whatever RANK says: of a command that reads, and shares no work with others.
    """
    if everywhere or is_main_process():
        click.echo(text)


def print_json(value: object, *, everywhere: bool = False) -> None:
    """One JSON object for scripts."""
    print_text(json.dumps(value, indent=2), everywhere=everywhere)


def print_found(found: object, text: str, *, as_json: bool, everywhere: bool = False) -> None:
    """What a command found out: one JSON object with --json, else for people."""
    if as_json:
        print_json(found, everywhere=everywhere)
    else:
        print_text(text, everywhere=everywhere)


def outline(value: Any, indent: str = "") -> str:
    """A JSON object as indented lines."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", outline(item, indent + "  ")]
        else:
            text = item if isinstance(item, str) else json.dumps(item)
            lines.append(f"{indent}{key}: {text if len(text) <= 200 else text[:197] + '…'}")
    return "\n".join(lines)
