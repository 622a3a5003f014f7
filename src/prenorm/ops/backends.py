"""Which kernel runs for which op: one table, a fixed rule, and a way to ask.

An op's own body is the formula and the definition of right. A kernel may stand in for it where this table says so;
nothing is timed at run time, so the same machine, versions and shapes always run the same kernel.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels.cpu.attention import attention
from ..kernels.cpu.attention import suits as suits_attention
from ..kernels.cpu.attention import why_not as why_no_attention
from ..kernels.cpu.blocked_attention import blocked_attention, suits
from ..kernels.cpu.cross_entropy import losses_
from ..kernels.cpu.cross_entropy import suits as suits_losses
from ..kernels.cpu.decode_step import decode_step
from ..kernels.cpu.decode_step import suits as suits_decode_step
from ..kernels.cpu.dropout import dropout
from ..kernels.cpu.few_rows import few_rows
from ..kernels.cpu.few_rows import suits as suits_few_rows
from ..kernels.cpu.largest import largest
from ..kernels.cpu.largest import suits as suits_largest
from ..kernels.cpu.linear import linear
from ..kernels.cpu.linear import suits as suits_linear
from ..kernels.cpu.linear import why_not as why_no_linear
from ..kernels.cpu.native import why_not as why_no_native
from ..kernels.cpu.one_query import one_query
from ..kernels.cpu.one_query import suits as suits_one_query
from ..kernels.cpu.product import add_product_
from ..kernels.cpu.product import suits as suits_product
from ..kernels.cpu.product import why_not as why_no_product
from ..kernels.cpu.quantized_linear import quantized_linear
from ..kernels.cpu.quantized_linear import suits as suits_quantized_linear
from ..kernels.cpu.rms_norm import rms_norm
from ..kernels.cpu.rms_norm import suits as suits_rms_norm
from ..kernels.cpu.rope import rotate
from ..kernels.cpu.rope import suits as suits_rotate
from ..kernels.cpu.silu_gate import silu_gate
from ..kernels.cpu.silu_gate import suits as suits_silu_gate
from ..kernels.layer_norm import layer_norm
from ..kernels.layer_norm import suits as one_dtype
from ..kernels.plain import is_plain
from ..kernels.sdpa import sdpa


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One row of the table: a function that may stand in for an op's formula, and the reason why it exists.

    instead: what would run without it, and what that costs; measured by the command that `reason` names.
    """

    op: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    run: Callable[..., Any]
    reason: str
    instead: str
    suits: Callable[..., bool] | None = None  # of the op's arguments; None: every shape
    why_not: Callable[[], str] | None = None  # why this machine cannot have it, empty where it can; None: all can


# The first row that fits is taken.
KERNELS = (
    Kernel(
        op="scaled_dot_product_attention",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=one_query,
        suits=suits_one_query,
        why_not=why_no_native,
        reason="one query a head, as in decoding: keys and values are read once, in C++ (make bench-decode)",
        instead="PyTorch's fused attention: 1.4 to 2.2 times as long, in bfloat16 4 to 13 times",
    ),
    Kernel(
        op="scaled_dot_product_attention",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=attention,
        suits=suits_attention,
        why_not=why_no_attention,
        reason="blocks that stay in the caches, in C++, on AMD processors with AVX-512 (make bench-attention)",
        instead="PyTorch's fused attention: 1.3 to 2.5 times as long, in bfloat16 1.8 to 5",
    ),
    Kernel(
        op="scaled_dot_product_attention",
        devices=("cpu",),
        dtypes=(torch.bfloat16,),
        run=blocked_attention,
        suits=suits,
        reason="causal bfloat16 on a CPU, compiled: twice as fast as PyTorch's fused attention (make bench-attention)",
        instead="PyTorch's fused attention: 2 to 3 times as long, forward and backward",
    ),
    Kernel(
        op="scaled_dot_product_attention",
        devices=("cpu", "cuda"),
        dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
        run=sdpa,
        reason="PyTorch's fused attention never stores the scores (memory linear in seq instead of quadratic)",
        instead="the formula: memory for seq x seq scores of each head",
    ),
    Kernel(
        op="linear",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=few_rows,
        suits=suits_few_rows,
        why_not=why_no_native,
        reason="up to 8 rows, as in decoding: the weight is read once, at the speed of memory (make bench-decode)",
        instead="PyTorch's product: 1.4 to 6.8 times as long, in bfloat16 1.3 to 2.4 times",
    ),
    Kernel(
        op="linear",
        devices=("cpu",),
        dtypes=(torch.float32,),
        run=linear,
        suits=suits_linear,
        why_not=why_no_linear,
        reason="oneDNN instead of MKL: the faster one on AMD processors with AVX-512 (make bench-linear)",
        instead="MKL: 1.2 to 1.6 times as long from 64 rows on, on Zen 4",
    ),
    Kernel(
        op="quantized_linear",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=quantized_linear,
        suits=suits_quantized_linear,
        why_not=why_no_native,
        reason="whole numbers times whole numbers, which are read as they are stored (make bench-quantized)",
        instead="the formula: the weight is turned into floats first, each time",
    ),
    Kernel(
        op="add_product",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=add_product_,
        suits=suits_product,
        why_not=why_no_product,
        reason="the gradient of the head's weight, added to as it is multiplied, in C++ (make bench-training)",
        instead="PyTorch's product and a pass to add it: 1.3 times as long, in bfloat16 1.7 times",
    ),
    Kernel(
        op="decode_step",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=decode_step,
        suits=suits_decode_step,
        why_not=why_no_native,
        reason="a token for up to 8 rows, or 24 in all, through a whole model in one call of C++ (make bench-decode)",
        instead="the layers one after the other, each with its kernels: 1.2 to 1.6 times as long at 110M parameters",
    ),
    Kernel(
        op="largest",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=largest,
        suits=suits_largest,
        why_not=why_no_native,
        reason="the greedy choice among logits in one pass over them, in C++ (make bench-decode)",
        instead="PyTorch's: 3 times as long for 32,000 logits, in bfloat16 11 to 13 times",
    ),
    Kernel(
        op="dropout",
        devices=("cpu",),
        dtypes=(torch.float64, torch.float32, torch.bfloat16),
        run=dropout,
        suits=is_plain,
        reason="random bits instead of random floats: several times as fast as PyTorch's",
        instead="PyTorch's own, which draws a float for each number",
    ),
    Kernel(
        op="rms_norm",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=rms_norm,
        suits=suits_rms_norm,
        why_not=why_no_native,
        reason="one pass over memory, in C++: twice as fast as PyTorch's layer_norm (make bench-norm)",
        instead="the formula: 2 to 6 times as long",
    ),
    Kernel(
        op="rotate",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=rotate,
        suits=suits_rotate,
        why_not=why_no_native,
        reason="RoPE in one pass over memory, in C++ (make bench-training)",
        instead="the formula: 1.2 times as long for a token, 4 to 11 times for 2,048",
    ),
    Kernel(
        op="silu_gate",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=silu_gate,
        suits=suits_silu_gate,
        why_not=why_no_native,
        reason="silu(gate) * up in one pass over memory, and both gradients in another, in C++ (make bench-training)",
        instead="the formula: 1.3 times as long for 16 tokens of d_ff 2,048, 1.7 to 1.9 times for 2,048",
    ),
    Kernel(
        op="losses",
        devices=("cpu",),
        dtypes=(torch.float32, torch.bfloat16),
        run=losses_,
        suits=suits_losses,
        why_not=why_no_native,
        reason="logits become losses and gradients while a row is in the cache, in C++ (make bench-training)",
        instead="the formula: 2.7 to 4.4 times as long",
    ),
    Kernel(
        op="layer_norm",
        devices=("cpu", "cuda"),
        dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
        run=layer_norm,
        suits=one_dtype,
        reason="PyTorch's fused layer normalisation passes over memory once",
        instead="the formula: six passes over memory",
    ),
)

# By op, device and dtype: the forward pass of one token asks a hundred times, so the table is not searched each time.
_ROWS: dict[tuple[str, str, torch.dtype], list[Kernel]] = {}
for _kernel in KERNELS:
    for _key in itertools.product([_kernel.op], _kernel.devices, _kernel.dtypes):
        _ROWS.setdefault(_key, []).append(_kernel)

BACKENDS = ("auto", "reference")


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs for an op on one kind of input, why, and what would run instead, at which cost; "" for nothing."""

    op: str
    device: str
    dtype: torch.dtype
    runs: str
    why: str
    instead: str = ""


class Choices(list[Choice]):
    """Choices, which print as one paragraph each."""

    def __str__(self) -> str:
        return "\n".join(
            f"{one.op} ({one.device}, {str(one.dtype).removeprefix('torch.')}): {one.runs}\n    {one.why}"
            + (f"\n    instead: {one.instead}" if one.instead else "")
            for one in self
        )


_backend = "auto"
_record: list[Choice] | None = None


def choose(op: str, x: Tensor, *others: Any, **options: Any) -> Callable[..., Any] | None:
    """The kernel that runs `op` on these inputs, or None where the formula runs."""
    chosen = None
    if uses_kernels():
        device = "cpu" if x.is_cpu else x.device.type  # the latter makes a string each time
        for kernel in _ROWS.get((op, device, x.dtype), ()):
            if kernel.suits is None or kernel.suits(x, *others, **options):
                chosen = kernel
                break
    if _record is not None:
        _record.append(_describe(op, x.device.type, x.dtype, chosen))
    return None if chosen is None else chosen.run


def uses_kernels() -> bool:
    """Whether kernels may stand in for formulas at all: not within `use_backend("reference")`."""
    return _backend != "reference"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, "reference" runs every op as its plain formula; "auto" is the rule of the table.

    The switch holds for the whole process, threads included. Raises ConfigError for other names.
    """
    global _backend
    if name not in BACKENDS:
        raise ConfigError(f"a backend is one of {', '.join(BACKENDS)}, not {name!r}.")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def explain(module: nn.Module | None = None, *inputs: Any, **options: Any) -> Choices:
    """Which kernel runs for what, why, and what the alternative costs: `print(explain(block, x))` writes it out.

    Without a module: every row of the table for this machine. With a module and its inputs: the module is run once,
    without gradients, and the choices that its ops made are given, each once, in the order they were met.
    """
    global _record
    if module is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Choices(_describe_row(k, device, dtype) for k in KERNELS if device in k.devices for dtype in k.dtypes)
    _record = []
    try:
        with torch.no_grad():
            module(*inputs, **options)
        return Choices(dict.fromkeys(_record))
    finally:
        _record = None


def _describe(op: str, device: str, dtype: torch.dtype, kernel: Kernel | None) -> Choice:
    if kernel is not None:
        runs = f"{kernel.run.__module__}.{kernel.run.__qualname__}"
        return Choice(op, device, dtype, runs, kernel.reason, kernel.instead)
    if _backend == "reference":
        return Choice(op, device, dtype, "formula", 'use_backend("reference") asks for it')
    known = _ROWS.get((op, device, dtype))
    if known is None:
        return Choice(op, device, dtype, "formula", "no kernel for this device and dtype")
    missing = [kernel.why_not() for kernel in known if kernel.why_not is not None]
    return Choice(op, device, dtype, "formula", next(filter(None, missing), "no kernel for inputs like these"))


def _describe_row(kernel: Kernel, device: str, dtype: torch.dtype) -> Choice:
    missing = kernel.why_not is not None and kernel.why_not()
    return _describe(kernel.op, device, dtype, None if missing else kernel)
