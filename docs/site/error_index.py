"""Write docs/errors.md, the index of error messages, from the code that raises them.

    python docs/site/error_index.py

A message is the first argument of an error's constructor, or of a `ValueError` in a recipe's
section. Its values stand in capitals, "…" where an expression computes them.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kdscale"
PAGE = ROOT / "docs" / "errors.md"

REMEDIES = {
    "ConfigError": "Correct the recipe, the override or the option that the message names.",
    "DataError": "Correct the data set, or the `[data]` section that describes it.",
    "ModelError": "Correct the model's name, options or input in the recipe, or its code.",
    "WeightsError": "Name a weights file of this model, or download the file again.",
    "DownloadError": "Copy the file from a machine with a network.",
    "CacheError": "Follow the message; `kdscale cache info PLACE` describes a cache.",
    "CacheNotFoundError": "Build the cache, or name its place with `--cache`.",
    "CacheIncompleteError": "Run `kdscale cache build` again: it continues from finished shards.",
    "CacheMismatchError": "Use the recipe, data and teacher the cache was built from, or rebuild.",
    "CacheCorruptError": "Run `kdscale cache verify`, then `kdscale cache repair`.",
    "OutOfRangeError": "Use an index in the range that the message states.",
    "ClaimLostError": "Nothing: the other builder finishes the shard.",
    "ViewMismatchError": "Use the data set and library versions that the cache was built with.",
    "ExportError": "Choose another format, or retrain where the weights are at fault.",
    "RunError": "Name another `--run`, or resume the run.",
    "DivergedError": "Lower the learning rate, or set `gradient_clip`.",
    "PrunedError": "Nothing: the sweep continues with other trials.",
    "LaunchError": "Correct the launch command or the launcher's configuration.",
    "MainProcessError": "Read the message of the main process.",
    "StorageError": "Free space or change permissions, then run the same command again.",
    "UnsafePathError": "Remove the link, pipe or device from the folder.",
    "DeviceMemoryError": "Choose a smaller batch, model or precision.",
    "PeerLostError": "Read the message of the process that ended first.",
    "Interrupted": "Run the same command with `--resume`, or again where it continues by itself.",
    "Stopped": "Run the same command again; launchers can requeue on this exit code.",
}
"""What to do about each class, where a message says no more."""

FOLDER_PAGES = {
    "api": "python.md",
    "cache": "caches.md",
    "cache/stores": "stores.md",
    "building": "../launch/README.md",
    "config": "recipes.md",
    "data": "images.md",
    "data/views": "augmentation.md",
    "evaluation": "evaluation.md",
    "losses": "losses.md",
    "models": "your-data.md",
    "report": "reports.md",
    "runs": "runs.md",
    "sweep": "sweep.md",
    "target_sources": "training.md",
    "targets": "caches.md",
    "teacher": "your-data.md",
    "training": "training.md",
}
"""The page about a folder of `kdscale/`; commands.md where none is named."""

_START = """# Error messages

Every message that kdscale raises on purpose, generated from its source by
`python docs/site/error_index.py`. CAPITALS stand for values, … for computed text, so search for the
other words of your message. Where the middle column is empty, the sentence above the table applies.
A traceback is a bug: please report it, with the output of `kdscale env`."""


def error_index() -> str:
    """Return the text of docs/errors.md."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    bases = _public_bases(trees)
    rows: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for name, message in _messages(path, tree, bases):
            rows[bases[name]].add(_row(message, path))
    parts = [_START]
    for error in _public_errors(trees[PACKAGE / "errors.py"]):
        parts += ["", f"## {error.name}", "", f"{ast.get_docstring(error).splitlines()[0]}"]
        parts += [f"Exit code {_exit_code(error, trees)}. {REMEDIES[error.name]}"]
        if rows[error.name]:
            parts += ["", "| message | what to do | page |", "| --- | --- | --- |"]
            parts += sorted(rows[error.name], key=str.casefold)
    return "\n".join(parts) + "\n"


# ------------------------------------------------------------------ classes


def _public_errors(errors: ast.Module) -> list[ast.ClassDef]:
    return [node for node in errors.body if isinstance(node, ast.ClassDef)][1:]


def _public_bases(trees: dict[Path, ast.Module]) -> dict[str, str]:
    """Return, for each error class of the package, itself or its nearest base in errors.py."""
    found = {node.name: node.name for node in _public_errors(trees[PACKAGE / "errors.py"])}
    classes = [
        node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    for _ in classes:  # as deep as a chain of bases can be
        new = {
            node.name: found[_last_name(base)]
            for node in classes
            for base in node.bases
            if node.name not in found and _last_name(base) in found
        }
        if not new:
            break
        found |= new
    return found


def _exit_code(error: ast.ClassDef, trees: dict[Path, ast.Module]) -> int:
    """Return the exit code that a class sets or inherits."""
    by_name = {
        node.name: node
        for node in trees[PACKAGE / "errors.py"].body
        if isinstance(node, ast.ClassDef)
    }
    for statement in error.body:
        if isinstance(statement, ast.Assign) and _last_name(statement.targets[0]) == "exit_code":
            return ast.literal_eval(statement.value)
    return _exit_code(by_name[_last_name(error.bases[0])], trees)


# ------------------------------------------------------------------ messages


def _messages(path: Path, tree: ast.Module, bases: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield class and message of each error that a module creates."""
    section = path.is_relative_to(PACKAGE / "config")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = _last_name(node.func)
        if name == "ValueError" and section:
            name = "ConfigError"
        message = _pattern(node.args[0]) if name in bases else ""
        if re.search(r"[a-z]{3}", message):
            yield name, message


def _pattern(node: ast.expr) -> str:
    """Return the text of an expression, with values in capitals."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            text = ""
            for value in values:
                computed = isinstance(value, ast.FormattedValue) and text[-1:].isalpha()
                text += " " * computed + _pattern(value)  # "damaged{because}": two words
            return text
        case ast.FormattedValue(value=value):
            return _pattern(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _pattern(left) + _pattern(right)
        case ast.Call(func=ast.Name(id="number_of"), args=[_, ast.Constant(value=noun), *_]):
            return f"N {noun}" + ("es" if noun.endswith("s") else "s")
        case ast.Call(func=ast.Name(id="printable" | "shortened"), args=[value, *_]):
            return _pattern(value)
        case ast.Name() | ast.Attribute():
            return _last_name(node).strip("_").upper()
    return "…"


def _row(message: str, path: Path) -> str:
    what, remedy = _split_remedy(re.sub(r"…(?: ?…)+", "…", " ".join(message.split())))
    folder = path.relative_to(PACKAGE).parent.as_posix()
    found = [name for name in FOLDER_PAGES if f"{folder}/".startswith(f"{name}/")]
    page = FOLDER_PAGES[max(found, key=len)] if found else "commands.md"
    name = Path(page).parent.name if page.startswith("../") else Path(page).stem
    return f"| {_escaped(what)} | {_escaped(remedy)} | [{name}]({page}) |"


def _split_remedy(message: str) -> tuple[str, str]:
    """Return a message without its remedy, and the remedy, or nothing where it has none."""
    if split := _REMEDY.search(message):
        remedy = message[split.end() :]
        remedy = re.sub(r"^pip install (.*)", r"Run `pip install \1`", remedy)
        return message[: split.start()], remedy[0].upper() + remedy[1:]
    return message, ""


_REMEDY = re.compile(
    r"[:;.] (?:then )?(?=(?:"
    r"add|allow|begin|build|check|choose|convert|copy|correct|create|delete|distil|"
    r"download|export|finish|free|give|go|install|label|leave|let|list|lower|make|merge|"
    r"mount|move|name|number|open|pip|point|pull|put|raise|read|rebuild|remove|rename|"
    r"renumber|repair|replace|resize|restore|resume|run|save|see|set|shorten|start|state|"
    r"stop|take|then|train|try|unpack|update|use|wait|wanted|write"
    r")\b)|[,:] (?=wanted )",
    re.IGNORECASE,
)
"""Where the remedy of a message begins."""


def _escaped(text: str) -> str:
    return re.sub(r"([|<*])", r"\\\1", text)


def _last_name(node: ast.expr) -> str:
    """Return the name of `name` and of `a.b.name`."""
    return getattr(node, "id", None) or getattr(node, "attr", "")


if __name__ == "__main__":
    PAGE.write_text(error_index())
