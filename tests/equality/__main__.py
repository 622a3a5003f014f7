"""python -m tests.equality: run the whole grid, and say for each path and subject how near it comes to the limit."""

import argparse
import json
import logging
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .cases import FAMILIES
from .cells import SUBJECTS, Cell, draw
from .judge import Verdict, judge
from .paths import PATHS


def main(arguments: list[str] | None = None) -> int:
    """0 where every figure is at most 1, else 1."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # what it cannot convert, and nobody has asked for
    parser = argparse.ArgumentParser(prog="python -m tests.equality", description=__doc__)
    parser.add_argument("--cell", type=int, metavar="N", help="run this cell alone")
    parser.add_argument("--path", action="append", choices=PATHS, metavar="NAME", help="run the cells of this path")
    parser.add_argument(
        "--family", action="append", choices=FAMILIES, metavar="NAME", help="run the cells of this family"
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="K", help="run every K-th cell of each path and subject"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every cell and its figures to a file")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # what torch's compiler and exporters say of themselves

    cells = list(enumerate(draw(tuple(PATHS))))
    cells = [(number, cell) for number, cell in cells if options.path is None or cell.path in options.path]
    cells = [(number, cell) for number, cell in cells if options.family is None or cell.family in options.family]
    cells = [pair for _, pairs in _by_column(cells) for pair in pairs[:: options.every]]
    if options.cell is not None:
        cells = [(number, cell) for number, cell in cells if number == options.cell]
    began = time.perf_counter()
    verdicts = dict(_run(cells))
    seconds = time.perf_counter() - began
    for number, verdict in verdicts.items():
        if verdict.figure > 1 or options.cell is not None:
            _tell(number, verdict)
    if options.cell is None:
        _table(verdicts)
    if verdicts:
        worst = max(verdicts, key=lambda number: verdicts[number].figure)
        print(
            f"\n{len(verdicts):,} cells in {seconds:.0f} s, threads: {torch.get_num_threads()}, torch "
            f"{torch.__version__}. The worst is cell {worst}: {verdicts[worst].figure:.3f} of the limit."
        )
    failed = sum(verdict.figure > 1 for verdict in verdicts.values())
    print(f"{failed} cells are over the limit." if failed else "No cell is over the limit.")
    if options.json is not None:
        records = [
            {"number": number, "figure": verdict.figure, "figures": verdict.figures, "cell": asdict(verdict.cell)}
            for number, verdict in verdicts.items()
        ]
        options.json.write_text(json.dumps({"seconds": seconds, "cells": records}, indent=1) + "\n")
    return 1 if failed or not verdicts else 0


def _run(cells: list[tuple[int, Cell]]) -> Iterator[tuple[int, Verdict]]:
    """Judge them one after another; one that raises has failed, and the others go on."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(cells))
        for number, cell in cells:
            progress.update(task, description=f"{cell.path}, {cell.subject}")
            try:
                verdict = judge(cell)
            except Exception as error:
                print(f"cell {number}: {traceback.format_exc()}", file=sys.stderr)
                verdict = Verdict(cell, {f"{type(error).__name__}: {str(error).splitlines()[0][:100]}": np.inf})
            yield number, verdict
            progress.advance(task)


def _tell(number: int, verdict: Verdict) -> None:
    """A cell with its figures, and how to run it again."""
    print(f"\ncell {number}: python -m tests.equality --cell {number}")
    fields = asdict(verdict.cell).items()
    print("  " + ", ".join(f"{name}={value!r}" for name, value in fields if value is not None))
    for what, figure in verdict.figures.items():
        print(f"  {what}: {figure:.3f}{'  over the limit' if not figure <= 1 else ''}")


def _table(verdicts: dict[int, Verdict]) -> None:
    """Cells and worst figure of each path and subject, as Markdown."""
    print(f"\n| path | {' | '.join(SUBJECTS)} |\n|---|{'---|' * len(SUBJECTS)}")
    columns: dict[tuple[str, str], list[float]] = defaultdict(list)
    for verdict in verdicts.values():
        columns[verdict.cell.path, verdict.cell.subject].append(verdict.figure)
    for path in dict.fromkeys(path for path, _ in columns):
        entries = [columns.get((path, subject), []) for subject in SUBJECTS]
        print(f"| {path} | {' | '.join(f'{len(e)}: {max(e):.2f}' if e else '' for e in entries)} |")


def _by_column(cells: list[tuple[int, Cell]]) -> list[tuple[tuple[str, str], list[tuple[int, Cell]]]]:
    """The cells of each path and subject."""
    columns: dict[tuple[str, str], list[tuple[int, Cell]]] = defaultdict(list)
    for number, cell in cells:
        columns[cell.path, cell.subject].append((number, cell))
    return list(columns.items())


if __name__ == "__main__":
    sys.exit(main())
