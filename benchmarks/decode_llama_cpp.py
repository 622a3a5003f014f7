"""Writing text with a language model on a CPU, against llama.cpp: `make bench-llama`.

Both have the same weights, written to a GGUF file for llama.cpp (`gguf_file.py`), and write token after token greedily.
They run in turn; the table has medians in tokens a second and the ratio, with its lowest and highest: above 1 ours is
faster. `prefill` is 128 tokens that are read at once. `bandwidth` is how many bytes of weights a second each reads at
batch 1, as a share of what the sum of a large tensor reads in the same rounds. `logits apart` is the largest difference
of the logits after the cell's prompts, as a share of their root mean square, and `same text` whether all tokens agree.

llama.cpp is called as its own programs call it, by its C functions: one `llama_decode` for a token of each row, the
largest logit by NumPy, no sampler, no wrapper's loop; its cache is made before the clock runs. It is timed with its own
defaults, which are its fastest (measured: keys and values in float32, or attention that is not fused, take up to 1.8
times as long). These round keys and values to float16, so logits and texts are compared in a run that is not timed,
with keys and values in float32 and plain attention.

Each has a process of its own, as its users have, which waits at a pipe while the other runs.

Refuses to report while other work keeps the machine busy. --only 110M-1-bfloat16 measures one cell; --large has 1.1B
parameters too (16 GiB of memory).
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf_file
import numpy as np
import torch
from decode import MODELS, ROUNDS, WARMUP, arguments, counted, drawn, sizes
from llama import LlamaCpp
from machine import describe, refuse_while_busy, write_numbers
from processes import PAUSE, Process
from quantized import bytes_per_step
from rich.console import Console
from rich.table import Table

from prenorm import TransformerLM

DTYPES = ("float32", "bfloat16", "int8", "int4")


class Ours:
    """prenorm, and the file for the other."""

    def __init__(self, model: str, dtype: str, file: Path) -> None:
        torch.manual_seed(0)
        self.model = TransformerLM(MODELS[model]).eval()
        if dtype != "float32":  # what is not whole numbers is bfloat16
            self.model.bfloat16()
        gguf_file.write(self.model, dtype, file)
        if dtype in ("int8", "int4"):
            self.model.quantize(dtype)

    def read(self) -> int:
        """Bytes of weights that a step reads."""
        return bytes_per_step(self.model)

    def prepare(self, rows: int, length: int, new: int, exact: bool) -> None:
        """Nothing: `generate` makes its own cache."""

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        """Of the token after each prompt."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(prompts))[:, -1].float().numpy()

    def write(self, prompts: np.ndarray, new: int) -> list[list[int]]:
        """The most likely tokens after each prompt."""
        return self.model.generate(torch.from_numpy(prompts), max_new_tokens=new, temperature=0)


def measure(cell: str, ours: Process, theirs: Process) -> dict[str, Any]:
    """Tokens a second of each, a list by round, and whether both are the same model."""
    prompts, (rows, length, new) = drawn(cell).numpy(), sizes(cell)
    contestants = {"prenorm": ours, "llama.cpp": theirs}
    logits, texts = {}, {}
    for name, contestant in contestants.items():
        contestant.ask("prepare", rows, length, new, True)
        logits[name], _ = contestant.ask("logits", prompts)
        texts[name], _ = contestant.ask("write", prompts, new)
        contestant.ask("prepare", rows, length, new, False)
    rates: dict[str, list[float]] = {name: [] for name in (*contestants, "sum")}
    large = torch.randn(60_000_000)
    for _ in range(WARMUP + ROUNDS):
        for name, contestant in contestants.items():
            _, seconds = contestant.ask("write", prompts, new)
            rates[name].append(counted(cell) / seconds)
        time.sleep(PAUSE)
        start = time.perf_counter()
        large.sum()
        rates["sum"].append(large.nbytes / (time.perf_counter() - start))
    apart = np.abs(logits["prenorm"] - logits["llama.cpp"]).max()
    return {
        "cell": cell,
        "tokens_per_second": {name: rates[name][WARMUP:] for name in contestants},
        "bytes_per_second": rates["sum"][WARMUP:],
        "bytes_per_step": {name: contestant.ask("read")[0] for name, contestant in contestants.items()},
        "logits_apart": float(apart / np.sqrt(np.square(logits["prenorm"]).mean())),
        "same_text": texts["prenorm"] == texts["llama.cpp"],
    }


def main() -> None:
    """Print the table, and write the numbers where the options say."""
    options = arguments(__doc__, DTYPES)
    refuse_while_busy()
    found, version = [], ""
    for model in MODELS:
        for dtype in DTYPES:
            mine = [cell for cell in options.cells if cell.startswith(f"{model}-") and cell.endswith(f"-{dtype}")]
            if mine:
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "model.gguf"
                    ours = Process(Ours, model, dtype, file)
                    theirs = Process(LlamaCpp, file, MODELS[model].vocab_size, torch.get_num_threads())
                    version, _ = theirs.ask("version")
                    found += [measure(cell, ours, theirs) for cell in mine]
                    ours.end()
                    theirs.end()
    machine = f"{describe()}, {version}"
    console = Console(width=120)
    console.print(table(found))
    console.print(machine)
    write_numbers(options, "llama", "llama-cpp-python", cells=found)


def table(found: list[dict[str, Any]]) -> Table:
    """The numbers, written out."""
    shown = Table("tokens/s", "ours", "llama.cpp", "ratio", "lowest..highest", "bandwidth", "logits apart", "same text")
    for one in found:
        model, what, dtype = one["cell"].split("-")
        ours, theirs = one["tokens_per_second"].values()
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        shown.add_row(
            f"{model} {what if what == 'prefill' else f'batch {what}'} {dtype}",
            *(f"{statistics.median(rate):.1f}" for rate in (ours, theirs)),
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}..{max(ratios):.2f}",
            ", ".join(shares(one)) if what == "1" else "",
            f"{one['logits_apart']:.1e}",
            "yes" if one["same_text"] else "no",
        )
    return shown


def shares(one: dict[str, Any]) -> list[str]:
    """What each reads a second, of what a sum reads."""
    by_name = one["tokens_per_second"].items()
    read = {name: [rate * one["bytes_per_step"][name] for rate in rates] for name, rates in by_name}
    return [
        f"{statistics.median(a / b for a, b in zip(of_one, one['bytes_per_second'], strict=True)):.0%}"
        for of_one in read.values()
    ]


if __name__ == "__main__":
    main()
