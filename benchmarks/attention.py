"""Blocked causal attention against PyTorch's fused attention, bfloat16 on a CPU: `make bench-attention`.

Both run in turn (A B A B ...), forward and backward, as they are and under torch.compile, and forward alone, where the
blocked kernel is not what runs; the table has medians in
milliseconds, the spread of the ratio, and the ratio itself: above 1 the blocked kernel is faster. Nothing else should
be running.
"""

import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from prenorm.kernels.cpu.blocked_attention import blocked_attention
from prenorm.kernels.sdpa import sdpa
from prenorm.training.device import hold_on_to_memory

SHAPES = [(32, 2, 128, 64), (16, 2, 256, 64), (8, 4, 512, 64), (4, 8, 1024, 64)]  # batch heads seq head_dim
ROUNDS = 15


def main() -> None:
    """Print the table."""
    hold_on_to_memory()
    torch.manual_seed(0)
    title = f"Two documents a row; torch {torch.__version__}, {torch.get_num_threads()} threads"
    table = Table("batch heads seq head_dim", "way", "fused ms", "blocked ms", "ratio", "lowest..highest", title=title)
    for shape in SHAPES:
        for way in ("forward", "both", "both, compiled"):
            fused, blocked = measure(shape, compiled="compiled" in way, backward="both" in way)
            ratios = [a / b for a, b in zip(fused, blocked, strict=True)]
            table.add_row(
                " ".join(map(str, shape)),
                way,
                f"{1e3 * statistics.median(fused):.1f}",
                f"{1e3 * statistics.median(blocked):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f}..{max(ratios):.2f}",
            )
    Console().print(table)


def measure(shape: tuple[int, int, int, int], *, compiled: bool, backward: bool) -> tuple[list[float], list[float]]:
    """Seconds of the fused and of the blocked kernel, taken in turn."""
    torch._dynamo.reset()
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=backward) for _ in range(3))
    grad, seq = torch.randn(shape, dtype=torch.bfloat16), shape[2]
    documents = torch.arange(seq) >= seq // 2
    mask = (torch.ones(seq, seq, dtype=torch.bool).tril() & (documents[:, None] == documents)).expand(
        shape[0], 1, seq, seq
    )
    kernels = [torch.compile(kernel, dynamic=False) if compiled else kernel for kernel in (sdpa, blocked_attention)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_number in range(ROUNDS + 3):
        for kernel, taken in zip(kernels, seconds, strict=True):
            start = time.perf_counter()
            out = kernel(query, key, value, mask, True, 0.0)
            if backward:
                out.backward(grad)
            if round_number >= 3:  # the first rounds compile, and fill caches
                taken.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
