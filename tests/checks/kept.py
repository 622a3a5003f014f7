"""Results of a long measurement, kept in a file: it can be stopped at any time, and continues where it stopped.

A line is the JSON of one result. Lines that other code gave are ignored, so that no figure mixes two checkers.
"""

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import prenorm

T = TypeVar("T")


class Kept:
    """The results in a file, by name, of this code. Without a file nothing is kept. how: "local", or in a sandbox."""

    def __init__(self, file: Path | None, how: str) -> None:
        self.file, self.how = file, how
        self.results: dict[str, dict[str, Any]] = {}
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        for line in filter(str.strip, lines):
            held = json.loads(line)
            if held["code"] == code() and held["how"] == how:
                self.results[held["name"]] = held["result"]

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep a result."""
        assert name not in self.results, f"two are called {name}"
        self.results[name] = result
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as out:
                out.write(json.dumps({"code": code(), "how": self.how, "name": name, "result": result}) + "\n")


@functools.cache
def code() -> str:
    """A hash of the checker's source and of what it is measured by."""
    folders = [Path(prenorm.__file__).parent / "checks", Path(__file__).parent]
    files = sorted(path for folder in folders for path in folder.rglob("*.py") if not path.name.startswith("test_"))
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in files))
    return digest.hexdigest()[:16]


def part(everything: Sequence[T], which: str) -> list[T]:
    """One part of all, in a shuffled order that is always the same. which: "2/5" is the second of five."""
    number, count = map(int, which.split("/"))
    assert 1 <= number <= count, which
    order = list(range(len(everything)))
    random.Random(0).shuffle(order)
    return [everything[place] for place in sorted(order[number - 1 :: count])]


def table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A table of two columns, as the docs have it."""
    return "\n".join([f"| `python -m tests.checks.{title}` | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def share(part_of: int, whole: int) -> str:
    """A percentage with one decimal; 100 % only where nothing is missing."""
    percent = 100 * part_of / whole if whole else 0.0
    return "100 %" if part_of == whole else f"{min(percent, 99.9):.1f} %"
