"""How often `place` points to the line that was changed: python -m tests.checks.placing [--misses] [--renamed]

near: within 1 line of a changed one (2 where lines were only taken away). inside: in the function that holds a change.
--renamed: with meaningless names in place of all that the learner chose, but for arguments that check knows by name.
Faults that lie in no line (conventions under a target) are left out, and so are blocks with two faults.
"""

import ast
import difflib
import io
import sys
import tempfile
import tokenize
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prenorm.checks.faults import CRASHES
from prenorm.checks.locate.place import place
from prenorm.checks.subject.child.driver import Driver
from prenorm.checks.subject.child.meanings import ARGUMENTS
from prenorm.checks.verdict import Place

from . import corpus
from .corpus import Example


@dataclass(frozen=True)
class Placed:
    """One example, and what became of it."""

    example: Example
    id: str
    place: Place | None
    near: bool
    inside: bool


def placed(*, renamed: bool = False, every: int = 1) -> list[Placed]:
    """Every faulty example with one fault that changes the source, or one in so many."""
    return [
        _placed(example, renamed)
        for example in corpus.faulty()[::every]
        if len(example.faults) == 1 and example.source != corpus.original(example).source
    ]


def _placed(example: Example, renamed: bool) -> Placed:
    (id,) = example.faults
    changes = _changes(corpus.original(example).source, example.source)
    error = raised(example) if id in CRASHES - {"timeout"} else None
    source, name = _renamed(example) if renamed else (example.source, example.attribute)
    found = place(id, source, "block.py", name, error=error)
    near = found is not None and any(first <= found.line <= last for first, last in changes)
    spans = _spans(example.source)
    inside = found is not None and any(
        (held := _span(found.line, spans)) is not None and held == _span(number, spans)
        for change in changes
        for number in range(change[0], change[1])
    )
    return Placed(example, id, found, near, inside or near)


def _changes(before: str, after: str) -> list[tuple[int, int]]:
    """First and last line that count as near, for every change."""
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    near = []
    for tag, _, _, first, end in matcher.get_opcodes():
        if tag == "delete":
            near.append((first - 1, first + 2))  # two lines on either side of the gap
        elif tag != "equal":
            near.append((first, end + 1))
    return near


def _spans(source: str) -> list[tuple[int, int]]:
    """First and last line of every function."""
    nodes = [one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.FunctionDef)]
    return [(node.lineno, node.end_lineno or node.lineno) for node in nodes]


def _span(line: int, spans: list[tuple[int, int]]) -> tuple[int, int] | None:
    return min((one for one in spans if one[0] <= line <= one[1]), key=lambda one: one[1] - one[0], default=None)


POSITIONS = [
    "token_positions",
    "positions",
    "position_ids",
    "pos",
    "input_pos",
    "pos_ids",
    "position",
    "token_pos",
    "p",
]
MASKS = ["mask", "attn_mask", "attention_mask"]
KEPT = {*" ".join(ARGUMENTS.values()).split(), *POSITIONS, *MASKS, "self", "forward", "__init__", "dim", "bias"}


def _renamed(example: Example) -> tuple[str, str]:
    """The source, and the class under test, with v1, v2, ... for names; lines stay where they are."""
    plain, attributes = set[str](), set[str]()
    for node in ast.walk(ast.parse(example.source)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                plain.add(name)
                attributes.add(name)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                plain.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()):
                attributes.add(name)
    plain -= KEPT
    attributes -= KEPT
    new = {name: f"v{number}" for number, name in enumerate(sorted(plain | attributes))}
    lines = example.source.splitlines()
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(example.source).readline))):
        if token.type != tokenize.NAME:
            continue
        row, column = token.start
        before = lines[row - 1][:column]
        if token.string in (attributes if before.endswith(".") else plain):
            lines[row - 1] = before + new[token.string] + lines[row - 1][token.end[1] :]
    return "\n".join(lines) + "\n", new.get(example.attribute, example.attribute)


def raised(example: Example) -> dict[str, Any] | None:
    """The driver's description of what the block raises; None where it raises nothing."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "block.py"
        file.write_text(example.source)
        driver = Driver()
        request = {"op": "load", "root": folder, "module": "block", "file": str(file), "name": example.attribute}
        requests: list[dict[str, Any]] = [
            request,
            {"op": "build", "positional": [16, 4, 24]},
            {"op": "run", "block": 0, "inputs": [torch.randn(2, 5, 16)]},
        ]
        for one in requests:
            if "error" in (reply := driver.handle(one)):
                return dict(reply["error"])
    return None


def main() -> None:
    """Print the figures, in total and for each fault."""
    by_id: dict[str, list[Placed]] = defaultdict(list)
    results = placed(renamed="--renamed" in sys.argv)
    for one in results:
        by_id[one.id].append(one)
    for id, ones in sorted(by_id.items(), key=lambda item: sum(one.near for one in item[1]) / len(item[1])):
        print(f"{id:32} near {sum(o.near for o in ones):3} inside {sum(o.inside for o in ones):3} of {len(ones):3}")
        for one in ones if "--misses" in sys.argv else ():
            if not one.near:
                where = "nowhere" if one.place is None else f"{one.place.line}: {one.place.code[:90]}"
                print(f"    {'in ' if one.inside else 'out'} {one.example.name}  ->  {where}")
    for name in ("near", "inside"):
        print(f"{name}: {sum(getattr(one, name) for one in results) / len(results):.1%} of {len(results)}")


if __name__ == "__main__":
    main()
