"""What activation checkpointing saves and costs, in training with dropout on a CPU: `make bench-checkpointing`.

For each depth: the bytes that are kept for the backward pass, the peak resident memory of a process of its own that
takes two training steps, and the time of a step, taken in turn (A B C A B C ...) in one process. The ratio is that of
the times, checkpointed to plain: its median, and the lowest and highest. Nothing else should be running.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from prenorm import TransformerEncoder

D_MODEL, NUM_HEADS, SEQ, BATCH, DROPOUT = 512, 8, 512, 2, 0.1
DEPTHS = (6, 12, 24)
MODES = {"plain": 0, "every layer": 1, "every 2nd": 2}
ROUNDS = 5
MIB = 2**20


def main() -> None:
    """Print the table, or, for one depth and mode, the peak memory of this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--peak", nargs=2, type=int, metavar=("DEPTH", "EVERY"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.peak:
        print(json.dumps(peak_memory(*flags.peak)))
        return
    rows = [row for depth in DEPTHS for row in measure(depth)]
    title = (
        f"TransformerEncoder, d_model {D_MODEL}, {BATCH} x {SEQ} tokens, dropout {DROPOUT}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    table = Table("layers", "checkpointed", "kept MiB", "fewer", "peak MiB", "before", "step s", "ratio", title=title)
    for row in rows:
        table.add_row(
            str(row["depth"]),
            row["mode"],
            f"{row['kept'] / MIB:,.0f}",
            f"{row['fewer']:.1f}x",
            f"{row['peak'] / MIB:,.0f}",
            f"{row['before'] / MIB:,.0f}",
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.2f} ({row['lowest']:.2f}..{row['highest']:.2f})",
        )
    Console().print(table)
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(depth: int) -> list[dict[str, Any]]:
    """The rows of one depth: a plain one, then the others."""
    encoder, x = build(depth)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for round_number in range(ROUNDS + 1):
        for mode, every in MODES.items():
            start = time.perf_counter()
            step(encoder, x, every)
            if round_number:  # the first one fills caches
                seconds[mode].append(time.perf_counter() - start)
    kept = {mode: bytes_kept(encoder, x, every) for mode, every in MODES.items()}
    rows = []
    for mode, every in MODES.items():
        ratios = [one / plain for one, plain in zip(seconds[mode], seconds["plain"], strict=True)]
        own_process = [sys.executable, __file__, "--peak", str(depth), str(every)]
        memory = json.loads(subprocess.run(own_process, check=True, capture_output=True, text=True).stdout)
        rows.append(
            {
                "depth": depth,
                "mode": mode,
                "kept": kept[mode],
                "fewer": kept["plain"] / kept[mode],
                **memory,
                "seconds": statistics.median(seconds[mode]),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def build(depth: int) -> tuple[TransformerEncoder, Tensor]:
    """A model with gradients in place, and its input."""
    torch.manual_seed(0)
    encoder = TransformerEncoder(depth, D_MODEL, NUM_HEADS, dropout=DROPOUT).train()
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return encoder, torch.randn(BATCH, SEQ, D_MODEL, requires_grad=True)


def step(encoder: TransformerEncoder, x: Tensor, every: int) -> None:
    """Forward and backward."""
    encoder(x, use_checkpointing=every).square().mean().backward()


def bytes_kept(encoder: TransformerEncoder, x: Tensor, every: int) -> int:
    """The memory that autograd holds on to between the forward and the backward pass, weights left out."""
    held = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # holding the tensor keeps its address its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = encoder(x, use_checkpointing=every)
    size = sum(size for size, _ in held.values())
    del output
    return size


def peak_memory(depth: int, every: int) -> dict[str, int]:
    """The peak resident memory of this process after two steps, and what it was before them, in bytes."""
    encoder, x = build(depth)
    before = resident_peak()
    for _ in range(2):
        step(encoder, x, every)
    return {"peak": resident_peak(), "before": before}


def resident_peak() -> int:
    """Linux's VmHWM. getrusage would tell the largest that the process which started this one has been, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
