"""A notebook as a Python file: what a block needs, without the code that trains, prints or draws."""

import ast
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .magics import as_python
from .needed import Definition, choose
from .parse import MAX_CHARACTERS, parse

MAX_BYTES = 20 << 20  # notebooks contain pictures
Lines = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Notebook:
    """What runs of a notebook, or a file that it writes. lines: for each line of the text its cell and line there.

    left_out: names that are made by what does not run, or may fail, with their cells.
    """

    text: str = ""
    lines: Lines = ()
    left_out: dict[str, str] = field(default_factory=dict)


def all_python(path: Path) -> str:
    """The Python of all cells that can be parsed, and of files that they write. Raises ValueError for no notebook."""
    texts = [*map(as_python, _cells(path)), *(one.text for one in written(path).values())]
    return "\n".join(text for text in texts if _parsed(text) is not None)


def written(path: Path) -> dict[str, Notebook]:
    """The Python files that cells write by %%writefile, by their paths; those outside the notebook's folder are not."""
    found: dict[str, Notebook] = {}
    for number, cell in enumerate(_cells(path), 1):
        head, _, text = cell.lstrip("\n").partition("\n")
        if (match := WRITES.fullmatch(head)) is None:
            continue
        file = os.path.normpath(path.parent / match["file"])
        skipped = cell.count("\n") - text.count("\n")
        lines = tuple((f"cell {number}", skipped + at) for at in range(1, text.count("\n") + 2))
        if Path(file).is_relative_to(path.parent):
            before = found.get(file, Notebook()) if match["more"] else Notebook()
            found[file] = Notebook(text=before.text + text + "\n", lines=before.lines + lines)
    return found


WRITES = re.compile(
    r"%%(?:writefile|file)[ \t]+(?P<more>(?:-a|--append)[ \t]+)?[\"']?(?P<file>[^\"']+\.py)[\"']?[ \t]*"
)


def definitions(path: Path, wanted: Collection[str]) -> Notebook:
    """The imports and definitions of a notebook, and what the wanted names need (see needed.choose).

    What is wanted and only in a file that a cell writes is imported from it. A cell that cannot be parsed is kept:
    importing it reports the error. Raises ValueError where the file is no notebook.
    """
    cells = [*map(as_python, _cells(path))]
    parsed = [_parsed(cell) or [] for cell in cells]
    body = [(number, node) for number, nodes in enumerate(parsed) for node in nodes]
    choice = choose([node for _, node in body], wanted)
    left_out: dict[str, str] = {}
    texts = [cell.split("\n") for cell in cells]
    future: list[tuple[str, tuple[str, int]]] = []
    for index, (number, node) in reversed([*enumerate(body)]):  # the last first: columns of those before stay right
        if index not in choice.kept or index in choice.tried:
            left_out |= dict.fromkeys(choice.names[index].makes, f"cell {number + 1}")
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":  # stands at the beginning, or nowhere
            future.append((ast.unparse(node), (f"cell {number + 1}", node.lineno)))
            _replace(texts[number], node, "pass")
        elif index not in choice.kept:
            _replace(texts[number], node, "pass")
        elif index in choice.tried:
            names = sorted(choice.names[index].makes)
            _try(texts[number], node, f"except Exception: [globals().pop(one, None) for one in {names}]")
    made = set().union(*(one.makes for one in choice.names))
    texts.append([line for name in sorted({*wanted} - made) for line in _import_of(name, path)])
    placed = [(line, (f"cell {number}", at)) for number, text in enumerate(texts, 1) for at, line in enumerate(text, 1)]
    both = [(line, (cell, at)) for text, (cell, at) in [*future, *placed] for line in text.split("\n")]
    return Notebook(
        text="\n".join(line for line, _ in both) + "\n", lines=tuple(place for _, place in both), left_out=left_out
    )


def _import_of(name: str, notebook: Path) -> Iterator[str]:
    """The import of a name from the last file that the notebook writes and that defines it, if any does."""
    for file, one in reversed(written(notebook).items()):
        if any(isinstance(node, Definition) and node.name == name for node in _parsed(one.text) or ()):
            parts = Path(file).relative_to(notebook.parent).with_suffix("").parts
            yield f"from {'.'.join(parts)} import {name}"
            return


def _cells(path: Path) -> list[str]:
    """The text of every cell with code."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    content = json.loads(path.read_bytes().decode(errors="replace"))
    # nbformat 3 has worksheets with cells, and "input" for "source".
    sheets = content.get("worksheets", [content]) if isinstance(content, dict) else []
    lists = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)] if isinstance(sheets, list) else []
    cells = [cell for one in lists if isinstance(one, list) for cell in one if isinstance(cell, dict)]
    if not any(isinstance(one, list) for one in lists):
        raise ValueError("it has no list of cells")
    code = [cell.get("source", cell.get("input", "")) for cell in cells if cell.get("cell_type") == "code"]
    texts = ["".join(map(str, one)) if isinstance(one, list) else str(one) for one in code]
    if sum(map(len, texts)) > 4 * MAX_CHARACTERS:
        raise ValueError(f"its code has more than {4 * MAX_CHARACTERS} characters")
    return [re.sub("\r\n|\r", "\n", one) for one in texts]


def _parsed(source: str) -> list[ast.stmt] | None:
    try:
        return parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _replace(lines: list[str], node: ast.stmt, by: str) -> None:
    """Put something else in place of a statement, which may share its lines with others; no line is lost."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))]) - 1
    last = (node.end_lineno or node.lineno) - 1
    column = node.col_offset if first == node.lineno - 1 else 0
    before = lines[first].encode()[:column].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    lines[first : last + 1] = [before + by + after, *[""] * (last - first)]


def _try(lines: list[str], node: ast.stmt, handler: str) -> None:
    """Run a simple statement, and do something else if it raises."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    after = lines[last].encode()[node.end_col_offset :].lstrip()
    if node.col_offset or after.startswith(b";"):  # it shares its lines
        _replace(lines, node, "pass")
        return
    lines[first] = f"try: {lines[first]}"
    lines[last] += f"\n{handler}"
