"""Put the code of examples into docs/integrations.md, below the comments that name it.

    python docs/site/example_code.py

A comment `<!-- example: FILE NAME... -->` names functions and classes of a file in `examples/`.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "integrations.md"
_COMMENT = re.compile(r"(<!-- example: (\S+) ([^>]+?) -->\n)(\n```python\n.*?\n```\n)?", re.S)


def with_code(page: str) -> str:
    """Return the text of the page with the code of today's examples."""
    return _COMMENT.sub(
        lambda found: f"{found[1]}\n```python\n{_code(*found.group(2, 3))}\n```\n", page
    )


def _code(file: str, names: str) -> str:
    """Return the source of some functions and classes of an example."""
    text = (ROOT / "examples" / file).read_text()
    nodes = {node.name: node for node in ast.parse(text).body if hasattr(node, "name")}
    return "\n\n\n".join(ast.get_source_segment(text, nodes[name]) or "" for name in names.split())


if __name__ == "__main__":
    PAGE.write_text(with_code(PAGE.read_text()))
