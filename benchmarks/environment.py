"""Writing text on a CPU with and without an environment variable: `benchmarks/environment.py THP_MEM_ALLOC_ENABLE=1`.

Two processes have the same weights, 110M parameters, and write token after token greedily, in turn: one as it is, and
one with the variable, which is set before torch is loaded. The table has medians in tokens a second and how many times
as fast the second is, with its lowest and highest.

Refuses to report while other work keeps the machine busy.
"""

import argparse
import os
import statistics

import torch
from decode import MODELS, ROUNDS, WARMUP, cells, counted, drawn, sizes
from machine import describe, refuse_while_busy
from processes import Process
from rich.console import Console
from rich.table import Table

from prenorm import TransformerLM


class Writer:
    """A model of random weights."""

    def __init__(self, dtype: str) -> None:
        torch.manual_seed(0)
        self.model = TransformerLM(MODELS["110M"], dtype=getattr(torch, dtype)).eval()

    def write(self, cell: str) -> list[list[int]]:
        """The most likely tokens after a cell's prompts."""
        return self.model.generate(drawn(cell), max_new_tokens=sizes(cell)[2], temperature=0)


def started(dtype: str, **variables: str) -> Process:
    """A writer whose process has these variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        return Process(Writer, dtype)
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variable", metavar="NAME=VALUE")
    name, _, value = parser.parse_args().variable.partition("=")
    refuse_while_busy()
    shown = Table("tokens/s", "as it is", f"{name}={value}", "ratio", "lowest..highest")
    for dtype in ("float32", "bfloat16"):
        plain, other = started(dtype), started(dtype, **{name: value})
        for cell in cells("110M", (dtype,)):
            rates = [
                [counted(cell) / writer.ask("write", cell)[1] for writer in (plain, other)]
                for _ in range(WARMUP + ROUNDS)
            ][WARMUP:]
            ratios = [b / a for a, b in rates]
            medians = (f"{statistics.median(rate):.1f}" for rate in zip(*rates, strict=True))
            spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
            shown.add_row(cell, *medians, f"{statistics.median(ratios):.2f}", spread)
        plain.end()
        other.end()
    console = Console(width=120)
    console.print(shown)
    console.print(describe())


if __name__ == "__main__":
    main()
