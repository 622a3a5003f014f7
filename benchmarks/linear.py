"""float32 products through oneDNN and through MKL, which PyTorch takes, on a CPU: `make bench-linear`.

Both run in turn (A B A B ...), some milliseconds at a time; the table has medians in GFLOP/s and the ratio with its
lowest and highest round: above 1 oneDNN is faster. `input` and `weight` are the two gradients, `own` is the second by
the kernel in C++ that is for it, against MKL too. Nothing else should be running. The rules in
`prenorm/kernels/cpu/linear.py` and `matmul.py` were written from this table.
"""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from prenorm.kernels.cpu.matmul import matmul
from prenorm.kernels.cpu.native import unavailable_reason
from prenorm.kernels.cpu.processor import processor

SHAPES = [(768, 768), (768, 2048), (2048, 768), (1024, 1024), (1024, 2752), (2752, 1024), (768, 32000)]  # in, out
ROWS = (1, 2, 4, 8, 16, 64, 128, 512, 2048)
LARGEST = 20_000_000  # numbers in a result
ROUNDS, AT_LEAST = 7, 4e-3  # and the seconds of a round


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


def main() -> None:
    """Print a table for all threads, and one for a single thread."""
    torch.manual_seed(0)
    vendor, family = processor()
    for threads in dict.fromkeys((torch.get_num_threads(), 1)):
        torch.set_num_threads(threads)
        table = Table(
            *("rows x in x out", "MKL", "oneDNN", "forward", "lowest..highest", "input", "weight", "own"),
            title=f"{vendor} family {family}, {threads} threads, torch {torch.__version__}",
        )
        for d_in, d_out in SHAPES:
            for rows in (rows for rows in ROWS if rows * d_out <= LARGEST):
                table.add_row(*row(rows, d_in, d_out))
        Console().print(table)


def row(rows: int, d_in: int, d_out: int) -> list[str]:
    """One line of the table."""
    x, weight, grad = torch.randn(rows, d_in), torch.randn(d_out, d_in), torch.randn(rows, d_out)
    mkl, ours = in_turn(lambda: torch.nn.functional.linear(x, weight), lambda: onednn(x, weight))
    ratios = [a / b for a, b in zip(mkl, ours, strict=True)]
    rates = (f"{2e-9 * rows * d_in * d_out / statistics.median(taken):.0f}" for taken in (mkl, ours))
    for_input = in_turn(lambda: grad @ weight, lambda: onednn(grad, weight.t()))
    runs = [
        lambda: grad.t() @ x,
        lambda: onednn(grad.t(), x.t()),
        *([] if unavailable_reason() else [lambda: matmul(grad.t(), x)]),
    ]
    first, *others = in_turn(*runs)
    return [
        f"{rows} x {d_in} x {d_out}",
        *rates,
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f}..{max(ratios):.2f}",
        *(
            f"{statistics.median(a / b for a, b in zip(*both, strict=True)):.2f}"
            for both in (for_input, *([first, other] for other in others))
        ),
    ]


def in_turn(*runs: Callable[[], Tensor]) -> list[list[float]]:
    """Seconds a call of each, by round."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, seconds in zip(runs, taken, strict=True):
            run()
            calls, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < AT_LEAST:
                run()
                calls += 1
            seconds.append(spent / calls)
    return taken


if __name__ == "__main__":
    main()
