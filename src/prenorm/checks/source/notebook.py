"""A notebook as a Python file: its imports and definitions, without the code that trains, prints or draws."""

import ast
import json
import re
from pathlib import Path

MAX_BYTES = 20 << 20  # notebooks contain pictures
TIMED = ("%%time", "%%capture", "%%prun")
"""What stands above a cell that is Python all the same."""
NOT_PYTHON = re.compile(r"(?m)^([ \t]*)([!%?].*|[\w.]+\?{1,2}|[\w, ]+ = [!%].*)$")
Lines = tuple[tuple[str, int], ...]


def definitions(path: Path) -> tuple[str, Lines]:
    """The imports and definitions of a notebook, and for each line its cell and line there.

    Assignments are kept where they call nothing, or where a definition uses what they name. A cell is left out where
    it is no Python, such as %%bash; so are lines for the shell, magics, and questions such as `Block?`.
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
    needed = set().union(*map(_used_by_definitions, sources))
    for number, source in enumerate(sources, 1):
        for line, one in enumerate(_kept(source, needed), 1):
            if one is not None:
                text.append(one)
                lines.append((f"cell {number}", line))
    return "\n".join(text) + "\n", tuple(lines)


def _python(source: object) -> str:
    """A cell's Python, with shell commands and magics replaced by pass."""
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    if text.lstrip().startswith("%%") and not text.lstrip().startswith(TIMED):
        return ""
    return NOT_PYTHON.sub(r"\1pass", text)


def _parsed(source: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _used_by_definitions(source: str) -> set[str]:
    nodes = [node for node in _parsed(source) or () if isinstance(node, Defined)]
    return {one.id for node in nodes for one in ast.walk(node) if isinstance(one, ast.Name)}


def _kept(source: str, needed: set[str]) -> list[str | None]:
    """The lines of a cell, with None for those that are left out."""
    lines: list[str | None] = list(source.splitlines())
    for node in _parsed(source) or ():  # code that cannot be parsed is kept: importing it reports the error
        start = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        if not _is_kept(node, needed):
            lines[start - 1 : node.end_lineno] = [None] * ((node.end_lineno or start) - start + 1)
    return lines


def _is_kept(node: ast.stmt, needed: set[str]) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Try():  # import this, or else that
            imports = any(isinstance(one, ast.Import | ast.ImportFrom) for one in node.body)
            return imports and all(_is_kept(one, needed) for one in node.body)
        case ast.Assign() | ast.AnnAssign():
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
            calls = node.value is not None and any(isinstance(one, ast.Call) for one in ast.walk(node.value))
            return bool(names & needed) or not calls
    return isinstance(node, Defined)


Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
