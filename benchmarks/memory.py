"""The peak memory of a training step, counted, tracked by PyTorch's MemTracker, and resident: `make bench-memory`.

For three models and two ways of training: the counted peak with hooks on all modules, which MemTracker has;
MemTracker's own; the counted peak of an ordinary step, as `prenorm cost` prints it; and how much a process of its own
grows over two steps, lowest and highest of three. That process runs this package's kernels where it has any, and its
allocator keeps what was freed; the other figures know neither.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from prenorm import ModelConfig, TransformerLM
from prenorm.costs.architecture import architecture_of
from prenorm.costs.memory import peak
from prenorm.training.config import TrainConfig
from prenorm.training.optimizer import MuonAndAdamW

# Rows and tokens a row with each. What takes most: activations of wide blocks, of many blocks, and the vocabulary.
MODELS = {
    "wide": (ModelConfig(vocab_size=8192, d_model=512, num_layers=4, num_heads=8, tie_embeddings=True), 2, 512),
    "deep": (ModelConfig(vocab_size=4096, d_model=256, num_layers=12, num_heads=4, qk_norm=True), 2, 512),
    "vocabulary": (ModelConfig(vocab_size=50304, d_model=256, num_layers=2, num_heads=4, tie_embeddings=True), 2, 256),
}
WAYS = {"float32": ("float32", 0), "bfloat16, checkpointed": ("bfloat16", 1)}
PROCESSES = 3
MIB = 2**20


def main() -> None:
    """Print the table, or, for one model and way, what its steps take in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--resident", nargs=2, metavar=("MODEL", "WAY"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.resident:
        print(resident(*flags.resident))
        return
    print(f"peak of a step with Muon, MiB; torch {torch.__version__}\n")
    print("| model | way | counted, hooked | MemTracker | off by | counted | resident, lowest | highest |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    rows = []
    for model, way in product(MODELS, WAYS):
        rows.append(row := measure(model, way))
        sizes = [f"{row[name] / MIB:,.0f}" for name in ("watched", "tracked", "counted", "lowest", "highest")]
        sizes.insert(2, f"{row['watched'] / row['tracked'] - 1:+.1%}")
        print(f"| {model} | {way} | {' | '.join(sizes)} |", flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(model: str, way: str) -> dict[str, Any]:
    """A row of the table."""
    config, batch, context = MODELS[model]
    dtype: Any
    dtype, every = WAYS[way]
    counted = {
        watched: peak(
            architecture_of(config), batch, context, dtype=dtype, optimizer="muon", every=every, watched=watched
        )
        for watched in (True, False)
    }
    own_process = [sys.executable, __file__, "--resident", model, way]
    grown = [int(subprocess.run(own_process, check=True, capture_output=True).stdout) for _ in range(PROCESSES)]
    return {
        **{"model": model, "way": way, "watched": counted[True], "tracked": tracked(model, way)},
        **{"counted": counted[False], "lowest": min(grown), "highest": max(grown)},
    }


def tracked(model: str, way: str) -> int:
    """What MemTracker sees in a second step, when the optimisers' state is there."""
    run = Run(model, way)
    tracker = MemTracker()
    tracker.track_external(run.model, *run.optimizer.optimizers, run.token_ids, run.targets)
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            run.step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def resident(model: str, way: str) -> int:
    """How much larger this process becomes for a model and two steps."""
    warm_up = torch.randn(64, 64, requires_grad=True)
    (warm_up @ warm_up).sum().backward()  # libraries and threads
    before = status("VmRSS")
    run = Run(model, way)
    for _ in range(2):
        run.step()
    return status("VmHWM") - before


class Run:
    """A model, its optimiser, and a batch."""

    def __init__(self, model: str, way: str) -> None:
        config, batch, context = MODELS[model]
        self.dtype, self.every = WAYS[way]
        self.model = TransformerLM(config).train()
        self.optimizer = MuonAndAdamW(self.model, TrainConfig.from_fields({}))
        self.token_ids, self.targets = torch.randint(config.vocab_size, (2, batch, context)).unbind()

    def step(self) -> None:
        """A training step, as `prenorm train` takes it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            loss = self.model.loss(self.token_ids, self.targets, use_checkpointing=self.every)
        loss.backward()
        self.optimizer.step(1.0)


def status(name: str) -> int:
    """A size in Linux's account of this process: VmRSS is resident now, VmHWM the most that it ever was."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
