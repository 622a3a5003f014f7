"""A notebook as a Python file: its imports and definitions, without the code that trains, prints or draws."""

import ast
import json
import re
from pathlib import Path

from .needed import needed

MAX_BYTES = 20 << 20  # notebooks contain pictures
TIMED = ("%%time", "%%capture", "%%prun")
"""What stands above a cell that is Python all the same."""
NOT_PYTHON = re.compile(r"(?m)^([ \t]*)([!%?](?:.*\\\n)*.*|[\w.]+\?{1,2}|[\w, ]+ = [!%](?:.*\\\n)*.*)$")
"""Lines for the shell, also with a backslash at their ends, magics, and questions."""
Lines = tuple[tuple[str, int], ...]


def definitions(path: Path, name: str = "") -> tuple[str, Lines]:
    """The imports and definitions of a notebook, and for each line its cell and line there.

    What else is kept is said in needed.py; name: the class that is asked for. A cell is left out where it is no
    Python, such as %%bash; so are lines for the shell, magics, and questions such as `Block?`.
    Raises ValueError where the file is no notebook.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"a notebook may have at most {MAX_BYTES} bytes, but {path} has more")
    content = json.loads(path.read_bytes().decode(errors="replace"))
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise ValueError(f"{path} is not a notebook: it has no list of cells")
    text: list[str] = []
    lines: list[tuple[str, int]] = []
    code = [cell for cell in cells if isinstance(cell, dict) and cell.get("cell_type") == "code"]
    sources = [_python(cell.get("source", "")) for cell in code]
    parsed = [_parsed(source) for source in sources]
    statements = [node for nodes in parsed for node in nodes or ()]
    left_out = {id(statements[place]) for place in {*range(len(statements))} - needed(statements, name)}
    for number, (source, nodes) in enumerate(zip(sources, parsed, strict=True), 1):
        for line, one in enumerate(_without(source, [node for node in nodes or () if id(node) in left_out]), 1):
            if one is not None:
                text.append(one)
                lines.append((f"cell {number}", line))
    return "\n".join(text) + "\n", tuple(lines)


def _python(source: object) -> str:
    """A cell's Python, with shell commands and magics replaced by pass."""
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    if text.lstrip().startswith("%%") and not text.lstrip().startswith(TIMED):
        return ""
    if _parsed(text) is not None:  # a line may begin with the operator %
        return text
    return NOT_PYTHON.sub(lambda found: f"{found[1]}pass" + "\n" * found[2].count("\n"), text)


def _parsed(source: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _without(source: str, left_out: list[ast.stmt]) -> list[str | None]:
    """The lines of a cell, with None for those of the statements that are left out."""
    lines: list[str | None] = list(source.splitlines())  # of code that cannot be parsed all: the import says why
    for node in left_out:
        start = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        lines[start - 1 : node.end_lineno] = [None] * ((node.end_lineno or start) - start + 1)
    return lines
