"""RMSNorm on a CPU against PyTorch's norms and a copy: `make bench-norm`.

All run in turn (A B C D E, B C D E A, ...), a few calls at a time after one that is not counted, so that what disturbs
one disturbs all. The table has medians in microseconds, and ratios with their lowest and highest: above 1 our kernel is
faster. `clone` is the floor: one read and one write, as forward has. `bandwidth` is the bytes a second that forward
(x, y) or forward and backward (x, y; x, g, dx) cannot do without, as a share of those of a copy between two tensors too
large for any cache. Nothing else should be running.

A result above 30 MB lies in memory that is fresh from the system each time, and its pages cost more than the numbers,
unless --hold keeps it in the process, as `prenorm train` does.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from prenorm.functional import rms_norm
from prenorm.kernels.cpu.native import unavailable_reason
from prenorm.training.device import hold_on_to_memory

SHAPES = [  # tokens, d_model
    *((1, 256), (1, 1024), (1, 4096)),
    *((128, 256), (256, 768), (512, 1024), (512, 777), (2048, 1024), (2048, 2048), (1024, 4096)),
    *((8192, 2048), (4096, 8192)),  # more than 30 MB in either dtype
]
DTYPES = [torch.float32, torch.bfloat16]
LARGE = 30e6  # bytes
ROUNDS, LARGE_ROUNDS = 15, 5
AT_LEAST = 1e-3  # seconds for the calls of a round


def formula(x: Tensor, weight: Tensor) -> Tensor:
    """What is written where nobody looks for speed."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def main() -> None:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--hold", action="store_true", help="keep the memory of results in the process")
    options = parser.parse_args()
    if options.hold:
        hold_on_to_memory()
    torch.manual_seed(0)
    console = Console()
    if unavailable_reason():
        console.print(f"There is no kernel here, so the first column is the op's formula: {unavailable_reason()}.")
    bandwidth = memory_bandwidth()
    memory = "held by the process" if options.hold else "as the allocator gives it"
    title = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {bandwidth / 1e9:.0f} GB/s, memory {memory}"
    cells = []
    for backward in (False, True):
        table = Table(
            *("dtype", "tokens x d_model", "MB", "ours µs", "formula", "rms_norm", "layer_norm", "clone"),
            *("layer_norm / ours", "lowest..highest", "clone / ours", "bandwidth"),
            title=f"{'Forward and backward' if backward else 'Forward'}; {title}",
        )
        for dtype in DTYPES:
            for tokens, d_model in SHAPES:
                cells.append(measure(tokens, d_model, dtype, backward=backward))
                table.add_row(*row(cells[-1], bandwidth))
        console.print(table)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"title": title, "bytes_per_second": bandwidth, "cells": cells}, indent=1) + "\n"
        )


def memory_bandwidth() -> float:
    """Bytes a second, read and written, of a copy between two tensors of 256 MB: the median of 9."""
    here, there = torch.ones(2**26), torch.zeros(2**26)
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        there.copy_(here)
        taken.append(time.perf_counter() - start)
    return 2 * here.nbytes / statistics.median(taken)


def measure(tokens: int, d_model: int, dtype: torch.dtype, *, backward: bool) -> dict[str, Any]:
    """Seconds a call of each contestant, a list by round, and what the cell is."""
    x = torch.randn(tokens, d_model).to(dtype).requires_grad_(backward)
    weight = torch.ones(d_model, dtype=dtype, requires_grad=backward)
    bias = torch.zeros(d_model, dtype=dtype, requires_grad=backward)
    contestants: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: rms_norm(x, weight),
        "formula": lambda: formula(x, weight),
        "rms_norm": lambda: torch.nn.functional.rms_norm(x, (d_model,), weight, 1e-6),
        "layer_norm": lambda: torch.nn.functional.layer_norm(x, (d_model,), weight, bias),
        "clone": lambda: x.clone(),
    }
    grad, leaves = torch.randn(tokens, d_model).to(dtype), (x, weight, bias)

    def call(run: Callable[[], Tensor]) -> None:
        y = run()
        if backward:
            y.backward(grad)
            for leaf in leaves:
                leaf.grad = None  # otherwise the next backward pass would add to it

    def seconds(run: Callable[[], Tensor], calls: int) -> float:
        call(run)  # so that each finds its own memory among what was freed last, not its neighbour's
        start = time.perf_counter()
        for _ in range(calls):
            call(run)
        return (time.perf_counter() - start) / calls

    size = x.numel() * x.element_size()
    calls = {}
    for name, run in contestants.items():
        seconds(run, 2)  # fills caches
        calls[name] = max(1, round(AT_LEAST / seconds(run, 3)))
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(LARGE_ROUNDS if size > LARGE else ROUNDS):
        for name in order:
            taken[name].append(seconds(contestants[name], calls[name]))
        order.append(order.pop(0))  # nobody always follows the same neighbour
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "d_model": d_model,
        "bytes": size,
        "backward": backward,
        "seconds": taken,
    }


def row(cell: dict[str, Any], bandwidth: float) -> list[str]:
    """A cell's numbers, written out."""
    seconds, backward, large = cell["seconds"], cell["backward"], cell["bytes"] > LARGE
    ours = seconds["ours"]
    against_norm = [a / b for a, b in zip(seconds["layer_norm"], ours, strict=True)]
    against_clone = [a / b for a, b in zip(seconds["clone"], ours, strict=True)]
    share = cell["bytes"] * (5 if backward else 2) / statistics.median(ours) / bandwidth
    return [
        cell["dtype"],
        f"{cell['tokens']} x {cell['d_model']}",
        f"{cell['bytes'] / 1e6:.3g}",
        *(f"{1e6 * statistics.median(seconds[name]):,.1f}" for name in seconds),
        f"{statistics.median(against_norm):.2f}",
        f"{min(against_norm):.2f}..{max(against_norm):.2f}",
        f"{statistics.median(against_clone):.2f}" if large else "",
        f"{share:.0%}",
    ]


if __name__ == "__main__":
    main()
