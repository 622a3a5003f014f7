"""What whole numbers are worth: how much faster a language model writes, and how much worse: `make bench-quantized`.

The same model in bfloat16, int8 and int4 writes token after token greedily, in turn; the table has medians in tokens a
second, the ratio to bfloat16 with its lowest and highest, and `bytes`, how many times fewer bytes of weights a step
reads. `prefill` is 128 tokens that are read at once. With --run, a folder that `prenorm train` left, the bits per byte
of its held-out text are shown, all of it and as training counts them, and how many per cent more they are.

Refuses to report while other work keeps the machine busy. --only 110M-1 measures one cell; --large has 1.1B parameters
too (24 GiB of memory).
"""

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from decode import MODELS, NEW_TOKENS, PREFILL, PROMPT, ROUNDS, WARMUP
from machine import add_json_options, describe, refuse_while_busy, write_numbers
from rich.console import Console
from rich.table import Table

from prenorm import TransformerLM
from prenorm.training.config import TrainConfig, read_toml
from prenorm.training.device import Device
from prenorm.training.evaluation import HeldOutBatches, heldout_loss
from prenorm.training.tokens import read_tokens

KINDS = ("bfloat16", "int8", "int4")
CELLS = [f"{model}-{what}" for model in MODELS for what in ("1", "8", "prefill")]


def contestants(model: str) -> dict[str, TransformerLM]:
    """The same weights in bfloat16, and rounded."""
    torch.manual_seed(0)
    made = TransformerLM(MODELS[model], dtype=torch.bfloat16).eval()
    return {kind: made if kind == "bfloat16" else copy.deepcopy(made).quantize(kind) for kind in KINDS}


def measure(cell: str, models: dict[str, TransformerLM]) -> dict[str, Any]:
    """Tokens a second of each, a list by round."""
    model, what = cell.split("-")
    batch, length, new = (1, PREFILL, 1) if what == "prefill" else (int(what), PROMPT, NEW_TOKENS[model])
    prompts = torch.randint(MODELS[model].vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))
    tokens = batch * length if what == "prefill" else batch * new
    rates: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(WARMUP + ROUNDS):
        for kind, one in models.items():
            start = time.perf_counter()
            one.generate(prompts, max_new_tokens=new, temperature=0)
            rates[kind].append(tokens / (time.perf_counter() - start))
    return {
        "cell": cell,
        "tokens_per_second": {kind: rate[WARMUP:] for kind, rate in rates.items()},
        "bytes_per_step": {kind: bytes_per_step(one) for kind, one in models.items()},
    }


def bytes_per_step(model: TransformerLM) -> int:
    """The bytes of all weights but the embedding, of which a step reads a row a token."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return sum(tensor.nbytes for name, tensor in tensors if name != "embedding.weight" and ".rope." not in name)


def rates_table(found: list[dict[str, Any]]) -> Table:
    """The rates, written out."""
    shown = Table("tokens/s", *KINDS, *(f"{kind}: {what}" for kind in KINDS[1:] for what in ("ratio", "bytes")))
    for one in found:
        rates, size = one["tokens_per_second"], one["bytes_per_step"]
        model, what = one["cell"].split("-")
        cells = []
        for kind in KINDS[1:]:
            ratios = [a / b for a, b in zip(rates[kind], rates["bfloat16"], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
            cells.append(f"{size['bfloat16'] / size[kind]:.2f}")
        medians = (f"{statistics.median(rates[kind]):.1f}" for kind in KINDS)
        shown.add_row(f"{model} {what if what == 'prefill' else f'batch {what}'}", *medians, *cells)
    return shown


def bits_per_byte(run: Path) -> dict[str, float]:
    """Of all the held-out text of a run: as the model was saved, and rounded."""
    config, data = TrainConfig.from_fields(read_toml(run / "config.toml")), read_tokens(run)
    batches = HeldOutBatches(
        data.heldout, batch_size=config.batch_size, context=config.context, overlap=config.eval_overlap
    )
    made = TransformerLM.from_pretrained(run)
    models = {"as saved": made, **{kind: copy.deepcopy(made).quantize(kind) for kind in KINDS[1:]}}
    losses: dict[str, Any] = {
        kind: heldout_loss(one, batches, Device(torch.device("cpu"), torch.float32)) for kind, one in models.items()
    }
    return {kind: data.heldout_text.bits_per_byte(loss, data.heldout.num_targets) for kind, loss in losses.items()}


def bits_table(bits: dict[str, float]) -> Table:
    """The bits per byte, written out."""
    shown = Table("held-out text", "bits per byte", "more")
    for kind, one in bits.items():
        shown.add_row(kind, f"{one:.4f}", f"{one / bits['as saved'] - 1:+.2%}")
    return shown


def main() -> None:
    """Print the tables, and write the numbers where the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CELLS, metavar="CELL", help=f"one of {', '.join(CELLS)}")
    parser.add_argument("--large", action="store_true", help="1.1B parameters too")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="what prenorm train left: bits per byte instead")
    add_json_options(parser)
    options = parser.parse_args()
    console, machine = Console(width=110), describe()
    numbers: dict[str, Any] = {}
    if options.run is None:
        refuse_while_busy()
        wanted = [options.only] if options.only else [cell for cell in CELLS if options.large or "1.1B" not in cell]
        numbers["cells"] = []
        for model in MODELS:
            mine = [cell for cell in wanted if cell.startswith(f"{model}-")]
            models = contestants(model) if mine else {}
            numbers["cells"] += [measure(cell, models) for cell in mine]
        console.print(rates_table(numbers["cells"]))
    else:
        numbers["bits_per_byte"] = bits_per_byte(options.run)
        console.print(bits_table(numbers["bits_per_byte"]))
    console.print(machine)
    write_numbers(options, "quantized", **numbers)


if __name__ == "__main__":
    main()
