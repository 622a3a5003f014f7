"""One block on a CPU against those of other packages, as they are and compiled: `make bench-blocks`.

All run in turn, one call at a time, so that what disturbs one disturbs all; the table has medians in milliseconds and
the ratio of each to ours, with its lowest and highest: above 1 ours is faster. Every block is causal, d_model 1024 with
16 heads; `nn.TransformerEncoderLayer` has GELU and d_ff 4128, which is as many FLOPs. The title says how much of our
time the block's matrix products take by themselves, through the same kernel: no block can be faster than these.

Refuses to report while other work keeps the machine busy. --only forward-512-float32 measures this cell;
--beside 2 starts two processes that spin on the same cores, to see who falls behind when cores are shared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import transformers
import x_transformers
from machine import add_json_options, describe, others, refuse_while_busy, write_numbers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from prenorm import TransformerBlock
from prenorm.functional import linear
from prenorm.kernels.cpu.linear import unavailable_reason

D_MODEL, HEADS, D_FF = 1024, 16, 2752
CELLS = [
    f"{way}-{tokens}-{dtype}"
    for dtype in ("float32", "bfloat16")
    for way in ("forward", "both")
    for tokens in (512, 2048)
]
ROUNDS, WARMUP = 7, 2


class HuggingFace(nn.Module):
    """`LlamaDecoderLayer`, with its own rotary tables and attention."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.LlamaConfig(
            hidden_size=D_MODEL,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=D_FF,
            attn_implementation="sdpa",
        )
        self.layer, self.rope = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, seq, d_model); without a mask its attention is causal."""
        tables = self.rope(x, torch.arange(x.shape[1])[None])
        out = self.layer(x, position_embeddings=tables)
        return out[0] if isinstance(out, tuple) else out


class XTransformers(nn.Module):
    """One layer of `x_transformers.Decoder`, with RMSNorm, SwiGLU, rotary positions and fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = x_transformers.Decoder(
            dim=D_MODEL,
            depth=1,
            heads=HEADS,
            attn_dim_head=D_MODEL // HEADS,
            use_rmsnorm=True,
            ff_swish=True,
            ff_glu=True,
            ff_mult=D_FF / D_MODEL,
            ff_no_bias=True,
            rotary_pos_emb=True,
            attn_flash=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, seq, d_model)."""
        out: Tensor = self.layer(x)
        return out


class PyTorch(nn.Module):
    """`nn.TransformerEncoderLayer`, pre-norm, at equal FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            D_MODEL, HEADS, 4128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, seq, d_model)."""
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        out: Tensor = self.layer(x, src_mask=mask, is_causal=True)
        return out


def contestants(dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every block, as it is and compiled."""
    blocks: dict[str, nn.Module] = {
        "prenorm": TransformerBlock(D_MODEL, HEADS, D_FF, causal=True),
        "transformers": HuggingFace(),
        "x-transformers": XTransformers(),
        "torch.nn": PyTorch(),
    }
    blocks = {name: block.to(dtype) for name, block in blocks.items()}
    return {**blocks, **{f"{name}, compiled": torch.compile(block) for name, block in blocks.items()}}


def measure(cell: str) -> dict[str, Any]:
    """Seconds a call of each contestant, a list by round."""
    way, tokens, dtype = cell.split("-")
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(1, int(tokens), D_MODEL, dtype=getattr(torch, dtype))
    blocks, grad = contestants(x.dtype), torch.randn_like(x)
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    order = list(blocks)
    for _ in range(ROUNDS + WARMUP):  # the first are for compilers and caches
        for name in order:
            start = time.perf_counter()
            call(blocks[name], x, grad if way == "both" else None)
            taken[name].append(time.perf_counter() - start)
        order.append(order.pop(0))  # nobody always follows the same neighbour
    return {
        "cell": cell,
        "seconds": {name: seconds[WARMUP:] for name, seconds in taken.items()},
        "products": products(x, backward=way == "both"),
    }


def call(block: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None) -> None:
    """Forward, and with a gradient of the result, backward to the input and every weight."""
    if grad is None:
        with torch.no_grad():
            block(x)
    else:
        block(x.detach().requires_grad_()).backward(grad)


def products(x: Tensor, *, backward: bool) -> float:
    """Seconds of the block's matrix products alone, through the same kernel: the median of as many rounds."""
    tokens = x.shape[1]
    shapes = [(D_MODEL, D_MODEL)] * 4 + [(D_FF, D_MODEL)] * 2 + [(D_MODEL, D_FF)]
    weights = [torch.randn(shape, dtype=x.dtype, requires_grad=backward) for shape in shapes]
    inputs = [torch.randn(tokens, width, dtype=x.dtype, requires_grad=backward) for _, width in shapes]
    grads = [torch.randn(tokens, width, dtype=x.dtype) for width, _ in shapes]
    taken = []
    for _ in range(ROUNDS + WARMUP):
        start = time.perf_counter()
        for weight, given, grad in zip(weights, inputs, grads, strict=True):
            y = linear(given, weight)
            if backward:
                y.backward(grad)
                weight.grad = given.grad = None
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[WARMUP:])


def main() -> None:
    """Print a table for each cell, and write the numbers where the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, metavar="CELL", help=f"some of {', '.join(CELLS)}")
    add_json_options(parser)
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="N processes that spin on the same cores")
    options = parser.parse_args()
    refuse_while_busy()
    machine = describe() + (f", beside {options.beside} busy processes" if options.beside else "")
    versions = f"transformers {transformers.__version__}, x-transformers {version('x-transformers')}"
    with others(options.beside):
        cells = [measure(cell) for cell in options.only or CELLS]
    console = Console()
    for cell in cells:
        console.print(table(cell))
    products = unavailable_reason() or "oneDNN"
    console.print(f"{machine}, {versions}. Products: {products} in float32, oneDNN in bfloat16.")
    write_numbers(options, "blocks", "transformers", "x-transformers", beside=options.beside, cells=cells)


def table(cell: dict[str, Any]) -> Table:
    """A cell's numbers, written out."""
    way, tokens, dtype = cell["cell"].split("-")
    ours = cell["seconds"]["prenorm"]
    share = cell["products"] / statistics.median(ours)
    way = "forward and backward" if way == "both" else way
    title = f"{way}, {tokens} tokens, {dtype}: products alone {share:.0%} of ours"
    shown = Table("block", "ms", "times ours", "lowest..highest", title=title, title_justify="left")
    for name, seconds in cell["seconds"].items():
        ratios = [theirs / our for theirs, our in zip(seconds, ours, strict=True)]
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        shown.add_row(name, f"{1e3 * statistics.median(seconds):.1f}", f"{statistics.median(ratios):.2f}", spread)
    return shown


if __name__ == "__main__":
    main()
