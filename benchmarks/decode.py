"""Writing text with a language model on a CPU, against Hugging Face's `generate`: `make bench-decode`.

Both have the same weights, read from the same folder, and write token after token greedily. They run in turn; the
table has medians in tokens a second and the ratio, with its lowest and highest: above 1 ours is faster. `prefill` is
128 tokens that are read at once, `by layer` ours without the kernel that takes a whole step. `bandwidth` is how many
bytes of weights a second our decoding reads, as a share of what the sum of a large tensor reads in the same rounds.

Refuses to report while other work keeps the machine busy. --only 110M-1-bfloat16 measures one cell; --large has 1.1B
parameters too (24 GiB of memory). --beside 2 starts two processes that spin on the same cores, to see who falls behind
when cores are shared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import add_json_options, describe, others, refuse_while_busy, write_numbers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from prenorm import ModelConfig, TransformerLM
from prenorm.generation import decoding

MODELS = {
    "110M": ModelConfig(32000, 768, 12, 12, d_ff=2048, max_seq_len=1024),
    "1.1B": ModelConfig(32000, 2048, 22, 32, num_kv_heads=4, d_ff=5632, max_seq_len=1024),
}
NEW_TOKENS = {"110M": 64, "1.1B": 24}
DTYPES, BATCHES = ("float32", "bfloat16"), (1, 8)
PROMPT, PREFILL = 16, 128  # tokens
ROUNDS, WARMUP = 7, 1


def cells(model: str, dtypes: tuple[str, ...] = DTYPES) -> list[str]:
    """What is measured with a model."""
    return [f"{model}-{what}-{dtype}" for dtype in dtypes for what in (*map(str, BATCHES), "prefill")]


def sizes(cell: str) -> tuple[int, int, int]:
    """Of a cell: how many prompts, how many tokens each has, how many are written after it."""
    model, what, _ = cell.split("-")
    return (1, PREFILL, 1) if what == "prefill" else (int(what), PROMPT, NEW_TOKENS[model])


def drawn(cell: str) -> torch.Tensor:
    """A cell's prompts."""
    model, (batch, length, _) = cell.split("-")[0], sizes(cell)
    return torch.randint(MODELS[model].vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def counted(cell: str) -> int:
    """The tokens by which a cell's time is divided: those that are read at once, or those that are written."""
    batch, length, new = sizes(cell)
    return batch * (length if new == 1 else new)


def contestants(model: str, dtype: str, folder: Path) -> tuple[TransformerLM, Any]:
    """Ours and Hugging Face's, with the same weights."""
    torch.manual_seed(0)
    made = TransformerLM(MODELS[model]).to(getattr(torch, dtype))
    made.save_pretrained(folder)
    del made
    ours = TransformerLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return ours, theirs


def measure(cell: str, ours: TransformerLM, theirs: Any) -> dict[str, Any]:
    """Tokens a second of each, a list by round."""
    prompts, (_, _, new) = drawn(cell), sizes(cell)
    runs: dict[str, Callable[[], list[list[int]]]] = {
        "prenorm": lambda: ours.generate(prompts, max_new_tokens=new, temperature=0),
        "layer by layer": lambda: by_layer(ours, prompts, new),
        "transformers": lambda: written(theirs, prompts, new),
    }
    rates: dict[str, list[float]] = {name: [] for name in (*runs, "sum")}
    texts = {}
    large = torch.randn(60_000_000)
    for _ in range(WARMUP + ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            texts[name] = run()
            rates[name].append(counted(cell) / (time.perf_counter() - start))
        start = time.perf_counter()
        large.sum()
        rates["sum"].append(large.nbytes / (time.perf_counter() - start))
    read = sum(p.nbytes for name, p in ours.named_parameters() if name != "embedding.weight")
    return {
        "cell": cell,
        "tokens_per_second": {name: rate[WARMUP:] for name, rate in rates.items() if name != "sum"},
        "bytes_per_second": rates["sum"][WARMUP:],
        "bytes_per_step": read,
        "same_text": texts["prenorm"] == texts["transformers"],
    }


def by_layer(model: TransformerLM, prompts: torch.Tensor, new: int) -> list[list[int]]:
    """What ours writes where no kernel takes a whole step: each layer by itself, with the kernels that these have."""
    replies: list[list[int]] = decoding.generate(  # type: ignore[assignment]  # no logprobs
        model._next_logits,
        model.make_cache,
        prompts,
        vocab_size=model.config.vocab_size,
        max_seq_len=model.config.max_seq_len,
        max_new_tokens=new,
        temperature=0,
    )
    return replies


def written(model: Any, prompts: torch.Tensor, new: int) -> list[list[int]]:
    """What Hugging Face's `generate` writes after the prompts."""
    everything = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[list[int]] = everything[:, prompts.shape[1] :].tolist()
    return tokens


def arguments(description: str | None, dtypes: tuple[str, ...]) -> argparse.Namespace:
    """What the command line asks for: the `cells`, where their numbers go, and how many are `beside`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [cell for model in MODELS for cell in cells(model, dtypes)]
    parser.add_argument("--only", nargs="+", choices=known, metavar="CELL", help=f"some of {', '.join(known)}")
    parser.add_argument("--large", action="store_true", help="1.1B parameters too")
    add_json_options(parser)
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="N processes that spin on the same cores")
    options = parser.parse_args()
    options.cells = options.only or [cell for cell in known if options.large or not cell.startswith("1.1B")]
    return options


def main() -> None:
    """Print the table, and write the numbers where the options say."""
    options = arguments(__doc__, DTYPES)
    refuse_while_busy()
    found = []
    for model in MODELS:
        for dtype in DTYPES:
            mine = [cell for cell in options.cells if cell.startswith(f"{model}-") and cell.endswith(f"-{dtype}")]
            if mine:
                with tempfile.TemporaryDirectory() as folder:
                    ours, theirs = contestants(model, dtype, Path(folder))
                    with others(options.beside):
                        found += [measure(cell, ours, theirs) for cell in mine]
                    del ours, theirs
    machine = f"{describe()}, transformers {transformers.__version__}"
    machine += f", beside {options.beside} busy processes" if options.beside else ""
    console = Console(width=110)
    console.print(table(found))
    console.print(machine)
    write_numbers(options, "decode", "transformers", beside=options.beside, cells=found)


def table(found: list[dict[str, Any]]) -> Table:
    """The numbers, written out."""
    shown = Table("tokens/s", "ours", "by layer", "theirs", "ratio", "lowest..highest", "bandwidth", "same text")
    for one in found:
        model, what, dtype = one["cell"].split("-")
        ours, by_layers, theirs = one["tokens_per_second"].values()
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        share = ""
        if what == "1":
            steps = [rate * one["bytes_per_step"] for rate in ours]
            share = f"{statistics.median(a / b for a, b in zip(steps, one['bytes_per_second'], strict=True)):.0%}"
        shown.add_row(
            f"{model} {what if what == 'prefill' else f'batch {what}'} {dtype}",
            *(f"{statistics.median(rate):.1f}" for rate in (ours, by_layers, theirs)),
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}..{max(ratios):.2f}",
            share,
            "yes" if one["same_text"] else "no",
        )
    return shown


if __name__ == "__main__":
    main()
