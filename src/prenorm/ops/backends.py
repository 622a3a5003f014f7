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
from ..kernels import layer_norm, sdpa
from ..kernels.cpu import (
    argmax,
    attention,
    blocked_attention,
    cross_entropy,
    decode_attention,
    decode_step,
    dropout,
    linear,
    matmul,
    native,
    quantized_linear,
    rms_norm,
    rope,
    silu_gate,
    skinny_linear,
)
from ..kernels.kernel import Kernel

# The first row that fits is taken.
KERNELS = (
    decode_attention.KERNEL,
    attention.KERNEL,
    blocked_attention.KERNEL,
    sdpa.KERNEL,
    skinny_linear.KERNEL,
    linear.KERNEL,
    linear.BFLOAT16_KERNEL,
    linear.AUTOCAST_KERNEL,
    quantized_linear.KERNEL,
    matmul.KERNEL,
    decode_step.KERNEL,
    argmax.KERNEL,
    dropout.KERNEL,
    rms_norm.KERNEL,
    rope.KERNEL,
    silu_gate.KERNEL,
    cross_entropy.KERNEL,
    layer_norm.KERNEL,
)

# Models that a kernel does not serve, whatever their tensors.
NOT_SERVED = {
    "decode_step": "models with what a family adds to the block (ModelConfig.family) run layer by layer: arcee, "
    "cohere, exaone4, gemma, gemma2, gemma3_text, glm, glm4, gpt2, gpt_neox, granite, nemotron, olmo, olmo2, smollm3, "
    "stablelm, starcoder2; ernie4_5, helium, llama, ministral, mistral, phi3, qwen2, qwen3 and seed_oss too, where the "
    "activation, biases of the feed-forward or the rotation are not the block's. So do those whose frequencies depend "
    "on the length (dynamic, longrope), and those with windows in some layers that are shorter than the room in the "
    "cache"
}

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
            if kernel.supports is None or kernel.supports(x, *others, **options):
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
        rows = ((kernel, dtype) for kernel in KERNELS if device in kernel.devices for dtype in kernel.dtypes)
        return Choices(_row(kernel, device, dtype) for kernel, dtype in rows)
    _record = []
    try:
        with torch.no_grad():
            module(*inputs, **options)
        if getattr(module, "decodes_layer_by_layer", False):
            first = next(module.parameters())
            _record.append(Choice("decode_step", first.device.type, first.dtype, "formula", NOT_SERVED["decode_step"]))
        return Choices(dict.fromkeys(_record))
    finally:
        _record = None


def _row(kernel: Kernel, device: str, dtype: torch.dtype) -> Choice:
    """A kernel of the table; for one that this machine cannot run: what runs in its place, and why."""
    reason = _unavailable_reason(kernel)
    if not reason:
        return _describe(kernel.op, device, dtype, kernel)
    rows = _ROWS[kernel.op, device, dtype]
    others = [row for row in rows[rows.index(kernel) + 1 :] if not _unavailable_reason(row)]
    if not others:
        return Choice(kernel.op, device, dtype, "formula", reason)
    most_general = others[-1]
    why = f"not {_name(kernel)}, because {reason}"
    return Choice(kernel.op, device, dtype, _name(most_general), why, most_general.fallback)


def _unavailable_reason(kernel: Kernel) -> str:
    return kernel.unavailable_reason() if kernel.unavailable_reason is not None else ""


def _name(kernel: Kernel) -> str:
    return f"{kernel.run.__module__}.{kernel.run.__qualname__}"


def _describe(op: str, device: str, dtype: torch.dtype, kernel: Kernel | None) -> Choice:
    if kernel is not None:
        library = f" ({native.load().which})" if kernel.in_library else ""
        why = "; ".join(filter(None, (kernel.gain + library, NOT_SERVED.get(op))))
        return Choice(op, device, dtype, _name(kernel), why, kernel.fallback)
    if not uses_kernels():
        why = 'use_backend("reference") asks for it'
    elif (op, device, dtype) not in _ROWS:
        why = "no kernel for this device and dtype"
    else:
        why = next(filter(None, map(_unavailable_reason, _ROWS[op, device, dtype])), "no kernel for inputs like these")
    return Choice(op, device, dtype, "formula", why)
