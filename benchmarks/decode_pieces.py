"""The pieces of decoding on a CPU by themselves: products, attention and the greedy choice, ours and PyTorch's, short
prompts, in one call and layer by layer, and what is looked at before a step of `stream`: `make bench-decode`.

All run in turn (A B A B ...), some milliseconds at a time, over as many weights or caches as no cache of the processor
holds; the table has medians of what ours reads, in GB/s, and how many times as long the other takes, with its lowest
and highest round: above 1 ours is faster.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from machine import describe, refuse_while_busy
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from prenorm import ModelConfig, TransformerLM
from prenorm.kernels.cpu.argmax import argmax
from prenorm.kernels.cpu.decode_attention import decode_attention
from prenorm.kernels.cpu.skinny_linear import skinny_linear

WEIGHTS = ((768, 768), (768, 2048), (2048, 768), (2048, 5632), (5632, 2048))  # in, out
ROWS = (1, 2, 3, 4, 8)
CACHES = ((12, 12, 64), (32, 4, 64))  # heads, heads of keys and values, head_dim
BATCHES, KEYS = (1, 8), (64, 192, 1024)
VOCAB = 32_000
PROMPTS = (8, 16, 24, 32)  # tokens
Runs = Sequence[Callable[[], Tensor]]
LAYERS, LOOKS = (2, 12, 24), 200
DTYPES = (torch.float32, torch.bfloat16)
BYTES = 150_000_000  # of weights or caches, one after the other
ROUNDS = 9


def main() -> None:
    """Print both tables."""
    refuse_while_busy()
    torch.manual_seed(0)
    console = Console()
    with torch.inference_mode():
        table = Table("rows x in x out", "dtype", "GB/s", "PyTorch takes", "lowest..highest")
        for dtype in DTYPES:
            for rows in ROWS:
                for d_in, d_out in WEIGHTS:
                    table.add_row(f"{rows} x {d_in} x {d_out}", name(dtype), *product(rows, d_in, d_out, dtype))
        console.print(table)
        table = Table("batch x heads (of keys) x keys", "dtype", "GB/s", "PyTorch takes", "lowest..highest")
        for dtype in DTYPES:
            for heads, groups, head_dim in CACHES:
                for batch in BATCHES:
                    for keys in KEYS:
                        shape = f"{batch} x {heads} ({groups}) x {keys}"
                        table.add_row(shape, name(dtype), *attention(batch, heads, groups, keys, head_dim, dtype))
        console.print(table)
        table = Table("rows x logits", "dtype", "GB/s", "PyTorch takes", "lowest..highest")
        for dtype in DTYPES:
            for rows in BATCHES:
                table.add_row(f"{rows} x {VOCAB}", name(dtype), *choice(rows, dtype))
        console.print(table)
        table = Table("tokens of a prompt, 110M", "dtype", "tokens/s", "layer by layer", "lowest..highest")
        for dtype in DTYPES:
            model = TransformerLM(ModelConfig(VOCAB, 768, 12, 12, d_ff=2048, max_seq_len=64), dtype=dtype).eval()
            for tokens in PROMPTS:
                table.add_row(str(tokens), name(dtype), *prompt(model, tokens))
        console.print(table)
        table = Table("layers", "the look before a step, µs", "lowest..highest")
        for layers in LAYERS:
            table.add_row(str(layers), *look(layers))
        console.print(table)
    console.print(describe())


def name(dtype: torch.dtype) -> str:
    """Without torch's name before it."""
    return str(dtype).removeprefix("torch.")


def product(rows: int, d_in: int, d_out: int, dtype: torch.dtype) -> list[str]:
    """One line of the first table."""
    count = max(2, BYTES // (d_in * d_out * dtype.itemsize))
    weights = [torch.randn(d_out, d_in).to(dtype) for _ in range(count)]
    x = torch.randn(rows, d_in).to(dtype)
    runs = [partial(skinny_linear, x, w, None) for w in weights], [partial(linear, x, w) for w in weights]
    return compared(runs, weights[0].nbytes)


def attention(batch: int, heads: int, groups: int, keys: int, head_dim: int, dtype: torch.dtype) -> list[str]:
    """One line of the second table. What is fused in PyTorch reads the keys of a group for each of its heads."""
    count = max(2, min(64, BYTES // (2 * batch * groups * keys * head_dim * dtype.itemsize)))
    query = torch.randn(batch, heads, 1, head_dim).to(dtype)
    caches = [torch.randn(2, batch, groups, keys, head_dim).to(dtype) for _ in range(count)]

    def fused(cache: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, cache[0], cache[1], enable_gqa=heads != groups)

    runs = (
        [partial(decode_attention, query, c[0], c[1], None) for c in caches],
        [partial(fused, c) for c in caches],
    )
    return compared(runs, caches[0].nbytes)


def choice(rows: int, dtype: torch.dtype) -> list[str]:
    """One line of the third table."""
    logits = [torch.randn(rows, VOCAB).to(dtype) for _ in range(64)]
    runs = [partial(argmax, x) for x in logits], [partial(torch.argmax, x, -1) for x in logits]
    return compared(runs, logits[0].nbytes)


def prompt(model: TransformerLM, tokens: int) -> list[str]:
    """One line of the last table: a prompt eight tokens at a time, without the limit that the rule has."""
    token_ids, cache, steps = torch.randint(VOCAB, (1, tokens)), model.make_cache(1, 64), model._decoder()

    def run(logits: Callable[..., Tensor]) -> Tensor:
        cache.reset()
        return logits(token_ids, segment_ids=None, cache=cache)

    with (
        patch("prenorm.generation.native_decode.decoder.MAX_TOKENS", 64),
        patch("prenorm.kernels.cpu.decode_step.MAX_TOKENS", 64),
    ):
        rate, ratio, spread = in_turn(([lambda: run(steps)], [lambda: run(model._next_logits)]), tokens)
    return [f"{rate:.0f}", ratio, spread]


def look(layers: int) -> list[str]:
    """Whether a model's parts and tensors are what they were, which `stream` asks before each step."""
    model = TransformerLM(ModelConfig(VOCAB, 128, layers, 4, d_ff=256, max_seq_len=64)).eval()
    token_ids, cache = torch.zeros(1, 1, dtype=torch.int64), model.make_cache(1, 64)
    decoder: Any = model._decoder()
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for _ in range(LOOKS):
            decoder._look(token_ids, cache)
        seconds.append((time.perf_counter() - start) / LOOKS)
    micros = [1e6 * one for one in seconds[1:]]
    return [f"{statistics.median(micros):.1f}", f"{min(micros):.1f}..{max(micros):.1f}"]


def compared(runs: tuple[Runs, Runs], read: int) -> list[str]:
    """Gigabytes a second of the first, how many times as long the second takes, and from where to where."""
    rate, ratio, spread = in_turn(runs, read)
    return [f"{rate / 1e9:.1f}", ratio, spread]


def in_turn(runs: tuple[Runs, Runs], count: int) -> tuple[float, str, str]:
    """How many of what `count` counts in a run the first does a second, and how the second's time compares."""
    taken: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 1):
        for mine, seconds in zip(runs, taken, strict=True):
            start = time.perf_counter()
            for run in mine:
                run()
            seconds.append((time.perf_counter() - start) / len(mine))
    ours, theirs = (seconds[1:] for seconds in taken)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    return count / statistics.median(ours), f"{statistics.median(ratios):.2f}", spread


if __name__ == "__main__":
    main()
