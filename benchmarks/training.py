"""Training a language model on a CPU, against those of other packages: `make bench-training`.

A step is loss, gradients, their clipping and AdamW (PyTorch's fused one, for all) on a batch of 4 x 512 tokens, at 110M
parameters; all learn the same batch again and again, and run in turn (training_peers.py says who they are). The table
has medians in tokens a second and how many times theirs ours is, with its lowest and highest: above 1 ours is faster.
`products` is how much of our time the matrix products take by themselves, through the same kernels: no step can be
faster than these. The losses of every step stand below, ours first. `prenorm train` has Muon for most matrices; what
that costs is not in here.

`loss` cells are `linear_cross_entropy` against PyTorch's linear and cross_entropy, forward and backward, of 2048 x 768
hidden states and 32,000 tokens, with the memory that each takes at its peak beyond its inputs, gradients included.

`pieces` cells are ops that have a kernel of their own against their formulas, forward and backward, for as many tokens
as a step has and for a few.

Large tensors keep their memory, as in `prenorm train`, for both; --fresh leaves that to the allocator. bfloat16 is
autocast. Refuses to report while other work keeps the machine busy. --only step-bfloat16 measures that cell.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import add_json_options, describe, refuse_while_busy, write_numbers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from training_peers import Loss, peers

from prenorm import ModelConfig, use_backend
from prenorm.functional import linear, linear_cross_entropy
from prenorm.kernels.cpu.matmul import MIN_ROWS
from prenorm.layers.rope import RotaryEmbedding
from prenorm.ops.cross_entropy import addmm_, chunk_rows, losses_and_gradient
from prenorm.ops.rope import rotate
from prenorm.ops.swiglu import silu_gate
from prenorm.training.device import hold_on_to_memory

CONFIG = ModelConfig(32000, 768, 12, 12, d_ff=2048, max_seq_len=1024)
BATCH, SEQ = 4, 512
CELLS = [f"{what}-{dtype}" for what in ("step", "loss", "pieces") for dtype in ("float32", "bfloat16")]
ROUNDS = {"step": 5, "loss": 9, "pieces": 15}
TOKENS = (1, 16, BATCH * SEQ)  # of the pieces
AT_LEAST = 1e-3  # seconds for the calls of a round of these
WARMUP = 1


def measure_step(dtype: str) -> dict[str, Any]:
    """Tokens a second and losses of each contestant, lists by round."""
    torch.manual_seed(0)
    tokens = torch.randint(CONFIG.vocab_size, (BATCH, SEQ + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        found = peers(CONFIG, Path(folder))
    steps = {name: stepper(model, loss, dtype) for name, (model, loss) in found.items()}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(WARMUP + ROUNDS["step"]):
        for name in order:
            start = time.perf_counter()
            losses[name].append(steps[name](inputs, targets))
            rates[name].append(tokens[:, 1:].numel() / (time.perf_counter() - start))
        order.append(order.pop(0))  # nobody always follows the same neighbour
    return {
        "cell": f"step-{dtype}",
        "tokens_per_second": {name: rate[WARMUP:] for name, rate in rates.items()},
        "losses": losses,
        "products": products(dtype),
    }


def stepper(model: nn.Module, loss: Loss, dtype: str) -> Callable[[Tensor, Tensor], float]:
    """A training step, which gives its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)

    def step(inputs: Tensor, targets: Tensor) -> float:
        with autocast(dtype):
            mean = loss(inputs, targets)
        mean.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return mean.item()

    return step


def autocast(dtype: str) -> torch.autocast:
    """Products in bfloat16, or as everything is."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def products(dtype: str) -> float:
    """Seconds that a step's matrix products take alone, those of attention left out: a median of 3 rounds."""
    model, d_ff, rows = CONFIG.d_model, CONFIG.d_ff, BATCH * SEQ
    shapes = [(model, model)] * 4 + [(d_ff, model)] * 2 + [(model, d_ff)]
    given = {"dtype": getattr(torch, dtype)}
    taken = []
    for times, these in ((CONFIG.num_layers, shapes), (1, [(CONFIG.vocab_size, model)])):
        weights = [torch.randn(shape, requires_grad=True, **given) for shape in these]
        inputs = [torch.randn(rows, width, requires_grad=True, **given) for _, width in these]
        grads = [torch.randn(rows, width, **given) for width, _ in these]
        rounds = []
        for _ in range(WARMUP + 3):
            start = time.perf_counter()
            for weight, x, grad in zip(weights, inputs, grads, strict=True):
                linear(x, weight).backward(grad)
                weight.grad = x.grad = None
            rounds.append(time.perf_counter() - start)
        taken.append(times * statistics.median(rounds[WARMUP:]))
    return sum(taken)


def plain_pair(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What is written where nobody looks for memory."""
    return nn.functional.cross_entropy(nn.functional.linear(x, weight).float(), targets)


PAIR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"prenorm": linear_cross_entropy, "plain": plain_pair}


def loss_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head and targets, drawn anew but always the same."""
    torch.manual_seed(0)
    x = torch.randn(BATCH * SEQ, CONFIG.d_model, requires_grad=True)
    weight = (0.02 * torch.randn(CONFIG.vocab_size, CONFIG.d_model)).requires_grad_()
    return x, weight, torch.randint(CONFIG.vocab_size, (BATCH * SEQ,))


def gradients(name: str, dtype: str, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """A loss forward and backward; its value."""
    with autocast(dtype):
        loss = PAIR[name](*inputs)
    loss.backward()
    inputs[0].grad = inputs[1].grad = None
    return loss.item()


def measure_loss(dtype: str) -> dict[str, Any]:
    """Seconds and losses of each contestant, lists by round, and the bytes that each takes at its peak."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as fresh:
        held = {name: fresh.submit(peak, name, dtype).result() for name in PAIR}
    inputs = loss_inputs()
    taken: dict[str, list[float]] = {name: [] for name in PAIR}
    losses: dict[str, list[float]] = {name: [] for name in PAIR}
    for _ in range(WARMUP + ROUNDS["loss"]):
        for name in PAIR:
            start = time.perf_counter()
            losses[name].append(gradients(name, dtype, inputs))
            taken[name].append(time.perf_counter() - start)
    return {
        "cell": f"loss-{dtype}",
        "seconds": {name: seconds[WARMUP:] for name, seconds in taken.items()},
        "losses": losses,
        "peak_bytes": held,
    }


def pieces(tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each op with a kernel of its own, forward and backward."""
    torch.manual_seed(0)
    gate, up, grad = (torch.randn(tokens, CONFIG.d_ff).to(dtype) for _ in range(3))
    gate, up = gate.requires_grad_(), up.requires_grad_()
    batch, seq = (BATCH, SEQ) if tokens == BATCH * SEQ else (1, tokens)
    heads = (batch, seq, CONFIG.num_heads, CONFIG.head_dim)
    q, q_grad = (torch.randn(heads).to(dtype).transpose(1, 2) for _ in range(2))
    q = q.requires_grad_()
    tables = RotaryEmbedding(CONFIG.head_dim, SEQ).cos_sin(torch.arange(seq)[None], dtype)
    rows = min(tokens, chunk_rows(CONFIG.vocab_size))
    logits = torch.randn(rows, CONFIG.vocab_size).to(dtype)
    targets = torch.randint(CONFIG.vocab_size, (rows,))
    total, x = torch.zeros(CONFIG.vocab_size, CONFIG.d_model), torch.randn(rows, CONFIG.d_model).to(dtype)
    found: dict[str, Callable[[], object]] = {
        "silu_gate": lambda: torch.autograd.grad(silu_gate(gate, up), (gate, up), grad),
        "rotate": lambda: torch.autograd.grad(rotate(q, *tables, interleaved=False), q, q_grad),
        "losses": lambda: losses_and_gradient(logits, targets, -100, True),
    }
    if rows >= MIN_ROWS:
        found["addmm"] = lambda: addmm_(total, logits.t(), x)
    return found


def measure_pieces(dtype: str) -> dict[str, Any]:
    """Seconds a call of each op by its kernel and by its formula, lists by round."""
    found = []
    for tokens in TOKENS:
        for name, call in pieces(tokens, getattr(torch, dtype)).items():
            taken: dict[str, list[float]] = {"auto": [], "reference": []}
            calls = 0
            for _ in range(WARMUP + ROUNDS["pieces"]):
                for backend, seconds in taken.items():
                    with use_backend(backend):
                        call()
                        start, calls = time.perf_counter(), 0
                        while time.perf_counter() - start < AT_LEAST:
                            call()
                            calls += 1
                        seconds.append((time.perf_counter() - start) / calls)
            found.append({"op": name, "tokens": tokens, "seconds": {name: one[WARMUP:] for name, one in taken.items()}})
    return {"cell": f"pieces-{dtype}", "pieces": found}


def peak(name: str, dtype: str) -> int:
    """The memory that a loss and its gradients add at most to a process that has done a small one before."""
    x, weight, targets = loss_inputs()
    gradients(name, dtype, (x[:8].detach().requires_grad_(), weight[:64].detach().requires_grad_(), targets[:8] % 64))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    gradients(name, dtype, (x, weight, targets))
    return status("VmHWM") - before


def status(what: str) -> int:
    """Bytes of this process, as Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


MEASURE = {"step": measure_step, "loss": measure_loss, "pieces": measure_pieces}


def main() -> None:
    """Print a table for each kind of cell, and write the numbers where the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, metavar="CELL", help=f"some of {', '.join(CELLS)}")
    add_json_options(parser)
    parser.add_argument("--fresh", action="store_true", help="leave the memory of large tensors to the allocator")
    options = parser.parse_args()
    refuse_while_busy()
    if not options.fresh:
        hold_on_to_memory()
    found = []
    for cell in options.only or CELLS:
        what, dtype = cell.split("-")
        found.append(MEASURE[what](dtype))
    memory = "as the allocator gives it" if options.fresh else "held by the process"
    machine = f"{describe()}, transformers {transformers.__version__}, memory {memory}"
    console = Console(width=110)
    for what, write in (("step", step_table), ("loss", loss_table), ("pieces", pieces_table)):
        if cells := [one for one in found if one["cell"].startswith(what)]:
            console.print(write(cells))
            for one in cells:
                for name, losses in one.get("losses", {}).items():
                    console.print(f"losses, {one['cell']}, {name}: {' '.join(f'{loss:.5f}' for loss in losses)}")
    console.print(machine)
    packages = ["transformers", *(["litgpt"] if "litgpt" in sys.modules else [])]
    write_numbers(options, "training", *packages, held=not options.fresh, cells=found)


def step_table(found: list[dict[str, Any]]) -> Table:
    """The steps, written out."""
    shown = Table("step", "model", "tokens/s", "ours / theirs", "lowest..highest", "products / ours")
    for one in found:
        rates = one["tokens_per_second"]
        ours = rates["prenorm"]
        for name, theirs in rates.items():
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            shown.add_row(
                one["cell"].removeprefix("step-"),
                name,
                f"{statistics.median(theirs):.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f}..{max(ratios):.2f}",
                f"{one['products'] * statistics.median(ours) / (BATCH * SEQ):.0%}" if theirs is ours else "",
            )
    return shown


def loss_table(found: list[dict[str, Any]]) -> Table:
    """The losses, written out."""
    shown = Table("linear_cross_entropy", "ours s", "plain s", "plain / ours", "lowest..highest", "ours MB", "plain MB")
    for one in found:
        ours, plain = one["seconds"].values()
        ratios = [a / b for a, b in zip(plain, ours, strict=True)]
        shown.add_row(
            one["cell"],
            f"{statistics.median(ours):.2f}",
            f"{statistics.median(plain):.2f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}..{max(ratios):.2f}",
            *(f"{held / 1e6:.0f}" for held in one["peak_bytes"].values()),
        )
    return shown


def pieces_table(found: list[dict[str, Any]]) -> Table:
    """The pieces, written out."""
    shown = Table("op", "tokens", "dtype", "ours µs", "formula µs", "formula / ours", "lowest..highest")
    for cell in found:
        for one in cell["pieces"]:
            ours, formula = one["seconds"].values()
            ratios = [a / b for a, b in zip(formula, ours, strict=True)]
            shown.add_row(
                one["op"],
                str(one["tokens"]),
                cell["cell"].removeprefix("pieces-"),
                f"{1e6 * statistics.median(ours):,.1f}",
                f"{1e6 * statistics.median(formula):,.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f}..{max(ratios):.2f}",
            )
    return shown


if __name__ == "__main__":
    main()
