"""What checkpoints cost a training run on a CPU, and what their hashes cost: `make bench-checkpoints`.

`stall`: the same steps (loss, gradients, optimiser, on random tokens) with a checkpoint after some of them, written
beside the others, and without any, in turn. The table has the seconds that `save` keeps training waiting for (the
copy), the seconds of a checkpoint that is written while training waits, and by how much the steps together take longer
with checkpoints than without: medians of the rounds, with the lowest and highest of the last.

`opening`: `TransformerLM.from_pretrained` of the model's folder with its manifest, whose hashes are compared while the
weights are read, against the same folder without one, and transformers, in turn.

Refuses to report while other work keeps the machine busy. --size 110m measures that size alone.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe, refuse_while_busy
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from prenorm import ModelConfig, TransformerLM
from prenorm.checkpoint.manifest import MANIFEST
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import save_checkpoint
from prenorm.training.config import TrainConfig
from prenorm.training.device import hold_on_to_memory
from prenorm.training.optimizer import MuonAndAdamW

SIZES = {  # the model, rows and tokens of a step, steps between checkpoints
    "demo": (ModelConfig(4096, 128, 4, 2, d_ff=384, qk_norm=True, max_seq_len=256), (16, 256), 20),
    "110m": (ModelConfig(32000, 768, 12, 12, d_ff=2048, max_seq_len=1024), (4, 512), 5),
}
RUN = TrainConfig.from_fields({"preset": "demo", "keep_checkpoints": 2})


def measure_stall(config: ModelConfig, batch: tuple[int, int], every: int, rounds: int) -> dict[str, list[float]]:
    """Seconds: of the copy, of a checkpoint that is waited for, and of `every` steps with and without one beside."""
    model = TransformerLM(config)
    optimizer = MuonAndAdamW(model, RUN)
    tokens = torch.randint(config.vocab_size, (batch[0], batch[1] + 1))

    def steps() -> None:
        for _ in range(every):
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step(1e-3)

    def parts() -> dict[str, dict[str, torch.Tensor]]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_tensors()}

    seconds: dict[str, list[float]] = {name: [] for name in ("copy", "waited for", "with", "without")}
    steps()
    with tempfile.TemporaryDirectory(dir=".") as folder, CheckpointWriter(Path(folder), RUN, {}) as writer:
        writer.save(0, parts(), {})  # makes the buffers
        for number in range(1, rounds + 1):
            writer.wait()
            waited = functools.partial(save_checkpoint, Path(folder), 2 * number, RUN, {}, parts(), {})
            seconds["waited for"].append(timed(waited))
            seconds["without"].append(timed(steps))
            start = time.perf_counter()
            seconds["copy"].append(timed(functools.partial(writer.save, 2 * number + 1, parts(), {})))
            steps()
            seconds["with"].append(time.perf_counter() - start)
    return seconds


def measure_opening(config: ModelConfig, rounds: int) -> dict[str, list[float]]:
    """Seconds to open a folder, by who does, and whether hashes are compared."""
    seconds: dict[str, list[float]] = {name: [] for name in ("with hashes", "without", "transformers")}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        TransformerLM(config).save_pretrained(folder)
        manifest = Path(folder, MANIFEST)
        content = manifest.read_bytes()
        for _ in range(rounds + 1):
            seconds["with hashes"].append(timed(lambda: TransformerLM.from_pretrained(folder)))
            manifest.unlink()
            seconds["without"].append(timed(lambda: TransformerLM.from_pretrained(folder)))
            seconds["transformers"].append(timed(lambda: AutoModelForCausalLM.from_pretrained(folder)))
            manifest.write_bytes(content)
    return {name: each[1:] for name, each in seconds.items()}


def timed(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    refuse_while_busy()
    hold_on_to_memory()
    stall = Table("size", "copy (s)", "waited for (s)", "steps (s)", "longer with a checkpoint")
    opening = Table("size", "with hashes (s)", "without (s)", "transformers (s)", "with hashes / transformers")
    for size in arguments.size or SIZES:
        config, batch, every = SIZES[size]
        found = measure_stall(config, batch, every, arguments.rounds)
        longer = [a / b - 1 for a, b in zip(found["with"], found["without"], strict=True)]
        middle = {name: statistics.median(each) for name, each in found.items()}
        stall.add_row(
            f"{size}, {every} steps",
            f"{middle['copy']:.3f}",
            f"{middle['waited for']:.2f}",
            f"{middle['without']:.2f}",
            f"{statistics.median(longer):.1%} ({min(longer):.1%} to {max(longer):.1%})",
        )
        opened = measure_opening(config, arguments.rounds)
        seconds = [statistics.median(each) for each in opened.values()]
        opening.add_row(size, *(f"{one:.3f}" for one in seconds), f"{seconds[0] / seconds[2]:.2f}")
    console = Console(width=110)
    console.print(describe())
    console.print(stall, opening)


if __name__ == "__main__":
    main()
