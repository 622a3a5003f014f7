"""Attention on a CPU, ours and PyTorch's fused one: `make bench-attention`.

The first table has the C++ kernel, the second the blocked one that compiled code takes in bfloat16. Ours and PyTorch's
run in turn (A B A B ...), causal, forward and with the backward pass; a table has medians in milliseconds, the ratio of
the two, its lowest and highest round: above 1 ours is faster. GFLOP/s count the products that the formula needs over
what is seen, two forward and four more backward; the last lines have the rate of a large product by itself.

Refuses to report while other work keeps the machine busy. --only first or second prints one table.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from machine import describe, refuse_while_busy
from rich.console import Console
from rich.table import Table
from torch import Tensor

from prenorm.functional import linear
from prenorm.kernels.cpu.attention import attention
from prenorm.kernels.cpu.blocked_attention import blocked_attention
from prenorm.kernels.sdpa import sdpa
from prenorm.training.device import hold_on_to_memory

SHAPES = [  # batch, heads, heads of keys and values, queries, keys, head_dim
    (1, 16, 16, 512, 512, 64),
    (1, 16, 16, 2048, 2048, 64),
    (1, 32, 4, 512, 512, 64),
    (1, 32, 4, 2048, 2048, 64),
    (1, 8, 8, 1024, 1024, 128),
    (4, 16, 16, 512, 512, 64),
    (1, 16, 16, 128, 128, 64),
    (1, 16, 16, 64, 64, 64),
    (1, 16, 16, 16, 16, 64),
    (4, 16, 16, 32, 32, 64),
    (1, 16, 16, 128, 2048, 64),
    (1, 16, 4, 8, 1024, 64),
    (1, 16, 4, 2, 1024, 64),
]
BLOCKED = [(32, 2, 128, 64), (16, 2, 256, 64), (8, 4, 512, 64), (4, 8, 1024, 64)]  # batch heads seq head_dim
DTYPES = (torch.float32, torch.bfloat16)
ROUNDS, WARMUP = 9, 2
AT_LEAST = 0.01  # seconds a round: short calls are taken several times


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("first", "second"))
    only = parser.parse_args().only
    refuse_while_busy()
    hold_on_to_memory()
    torch.manual_seed(0)
    console = Console(width=120)
    if only != "second":
        columns = ("dtype", "way", "PyTorch ms", "ours ms", "ratio", "lowest..highest", "GFLOP/s")
        table = Table("batch x heads (of keys) x queries (keys) x dim", *columns)
        for dtype in DTYPES:
            for shape in SHAPES:
                for backward in (False, True):
                    table.add_row(*in_cpp(shape, dtype, backward=backward))
        console.print(table)
    if only != "first":
        title = "bfloat16, two documents a row, forward and backward, compiled"
        table = Table("batch heads seq head_dim", "fused ms", "blocked ms", "ratio", "lowest..highest", title=title)
        for sizes in BLOCKED:
            table.add_row(" ".join(map(str, sizes)), *blocked(sizes))
        console.print(table)
    rates = ", ".join(f"{product_rate(dtype):.0f} GFLOP/s in {name(dtype)}" for dtype in DTYPES)
    console.print(f"{describe()}. A product of 2048 x 1024 x 1024: {rates}.")


def name(dtype: torch.dtype) -> str:
    """Without torch's name before it."""
    return str(dtype).removeprefix("torch.")


def in_cpp(shape: tuple[int, ...], dtype: torch.dtype, *, backward: bool) -> list[str]:
    """One line of the first table."""
    batch, heads, groups, queries, keys, head_dim = shape

    def projected(heads: int, seq: int) -> Tensor:
        return torch.randn(batch, seq, heads, head_dim).to(dtype).transpose(1, 2).requires_grad_(backward)

    given, grad = (
        (projected(heads, queries), projected(groups, keys), projected(groups, keys)),
        projected(heads, queries),
    )

    def pytorchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa(query, key, value, None, causal=True)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, None, causal=True)

    def call(attend: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(*given), given, grad) if backward else attend(*given)

    theirs, mine = in_turn(call(pytorchs), call(ours))
    seen = batch * heads * sum(range(keys - queries + 1, keys + 1))
    rate = (12 if backward else 4) * seen * head_dim / statistics.median(mine) / 1e9
    first = f"{batch} x {heads} ({groups}) x {queries} ({keys}) x {head_dim}"
    return [first, name(dtype), "both" if backward else "forward", *compared(theirs, mine), f"{rate:.0f}"]


def blocked(shape: tuple[int, ...]) -> list[str]:
    """One line of the second table."""
    torch._dynamo.reset()
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    grad, seq = torch.randn(shape, dtype=torch.bfloat16), shape[2]
    documents = torch.arange(seq) >= seq // 2
    mask = (documents[:, None] == documents).expand(shape[0], 1, seq, seq)

    def call(kernel: Callable[..., Tensor]) -> Callable[[], object]:
        compiled = torch.compile(kernel, dynamic=False)
        return lambda: compiled(query, key, value, mask, causal=True).backward(grad)

    return compared(*in_turn(call(sdpa), call(blocked_attention)))


def in_turn(theirs: Callable[[], object], mine: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds a call of each, a list by round."""
    start = time.perf_counter()
    mine(), theirs()  # the first is for compilers
    mine(), theirs()
    count = max(1, int(4 * AT_LEAST / (time.perf_counter() - start)))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + WARMUP):
        for run, seconds in zip((theirs, mine), taken, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                run()
            seconds.append((time.perf_counter() - start) / count)
    return taken[0][WARMUP:], taken[1][WARMUP:]


def compared(theirs: list[float], mine: list[float]) -> list[str]:
    """Both medians in milliseconds, the ratio, and from where to where."""
    ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    medians = [f"{1e3 * statistics.median(seconds):.2f}" for seconds in (theirs, mine)]
    return [*medians, f"{statistics.median(ratios):.2f}", spread]


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a product through the kernel that `linear` takes."""
    x, weight = torch.randn(2048, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
    seconds = in_turn(lambda: None, lambda: linear(x, weight))[1]
    return 2 * 2048 * 1024 * 1024 / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    main()
