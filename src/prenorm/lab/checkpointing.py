"""`prenorm lab checkpointing`: what activation checkpointing saves in memory, and costs in time."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..models.lm import TransformerLM
from ..page import Table
from .experiment import Experiment
from .folder import Cells
from .intervals import Claim, Finding, Interval, interval
from .report import Chapter, Drawing, Report
from .sweep import Plan

CHEN = "Chen et al. 2016, https://arxiv.org/abs/1604.06174"
EVERY = (0, 1, 2, 4, 8)  # every k-th block is checkpointed; 0: none
CALLS = 3  # of each in a round, in turn


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointingCell:
    """A language model's forward and backward pass with every k-th block checkpointed, for each k in turn."""

    layers: int
    d_model: int
    rows: int
    context: int
    round: int

    @property
    def cost(self) -> float:
        return float(self.layers * self.d_model * self.rows * self.context)

    def measure(self) -> dict[str, Any]:
        """By k: `seconds` (median), `kept` (bytes between the passes, weights left out), `apart`.

        `apart` is the largest difference of any gradient from that without checkpointing, with dropout on.
        """
        torch.manual_seed(self.round)
        config = ModelConfig(
            256, d_model=self.d_model, num_layers=self.layers, num_heads=4, max_seq_len=self.context, dropout=0.1
        )
        model = TransformerLM(config).train()
        token_ids = torch.randint(256, (self.rows, self.context + 1))
        seconds: dict[int, list[float]] = {every: [] for every in EVERY}
        gradients: dict[int, list[Tensor]] = {}
        for _ in range(CALLS + 1):
            for every in EVERY:
                torch.manual_seed(self.round)  # the same dropout
                start = time.perf_counter()
                gradients[every] = _gradients(model, token_ids, every)
                seconds[every].append(time.perf_counter() - start)
        return {
            str(every): {
                "seconds": statistics.median(seconds[every][1:]),  # the first fills caches
                "kept": _bytes_kept(model, token_ids, every),
                "apart": max(
                    float((one - other).abs().max()) for one, other in zip(gradients[every], gradients[0], strict=True)
                ),
            }
            for every in EVERY
        }


def checkpointing_experiment(
    *, layers: int = 8, d_model: int = 128, rows: int = 4, context: int = 128, rounds: int = 5
) -> Experiment:
    """One model, every k."""
    measured = [
        CheckpointingCell(layers=layers, d_model=d_model, rows=rows, context=context, round=number)
        for number in range(rounds)
    ]
    return Experiment(
        name="checkpointing",
        plan=lambda cells: Plan([]),
        timed=lambda cells: Plan(measured),
        report=lambda cells: _report(measured, cells),
        reads_text=False,
    )


def _gradients(model: TransformerLM, token_ids: Tensor, every: int) -> list[Tensor]:
    loss = model.loss(token_ids[:, :-1], token_ids[:, 1:], use_checkpointing=every)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _bytes_kept(model: TransformerLM, token_ids: Tensor, every: int) -> int:
    """The memory that autograd holds between the passes of the blocks, weights left out."""
    held: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # holding the tensor keeps its address its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(token_ids[:, :-1], use_checkpointing=every)
    size = sum(size for size, _ in held.values())
    del hidden
    return size


def _report(measured: list[CheckpointingCell], cells: Cells) -> Report:
    records = [cells.get(cell) or {} for cell in measured]
    times = {k: interval([one[str(k)]["seconds"] / one["0"]["seconds"] for one in records]) for k in EVERY}
    kept = {k: interval([one[str(k)]["kept"] / one["0"]["kept"] for one in records]) for k in EVERY}
    apart = interval([max(one[str(k)]["apart"] for k in EVERY) for one in records])
    first = measured[0]
    findings = [
        Finding(
            Claim("the gradients are the same, bit for bit, with dropout on", "prenorm's own promise", 0.0, 0.0), apart
        ),
        Finding(
            Claim("checkpointing every block costs about one more forward pass, a third", CHEN, 1.2, 1.45), times[1]
        ),
        Finding(Claim("checkpointing every 2nd block keeps about half of the memory", CHEN, 0.4, 0.6), kept[2]),
    ]
    rows = [(_name(k), _mib(records, k), str(kept[k]), str(times[k])) for k in EVERY]

    def draw(axes: Any) -> None:
        for k in EVERY:
            axes.errorbar(kept[k].mean, times[k].mean, _half(times[k]), marker="o", capsize=3, label=_name(k))
        axes.set(xlabel="kept between the passes, share of plain", ylabel="time of a step, share of plain")
        axes.legend()

    data = [
        (one.round, k, record[str(k)]["kept"], record[str(k)]["seconds"], record[str(k)]["apart"])
        for one, record in zip(measured, records, strict=True)
        for k in EVERY
    ]
    chapter = Chapter(
        title="What does activation checkpointing save, and cost?",
        text=[
            f"A language model of {first.layers} blocks, width {first.d_model}, {first.rows} x {first.context} tokens, "
            f"float32, dropout 0.1, one thread, {len(measured)} rounds, each k in turn. With `use_checkpointing=k` "
            "every k-th block keeps its input alone and runs again in the backward pass. All blocks: "
            f"{kept[1]} of the memory, {times[1]} of the time.",
        ],
        findings=findings,
        drawing=Drawing(name="checkpointing", draw=draw, alt="Time of a step over memory kept, a point for each k."),
        table=Table(
            ("checkpointed", "kept, MiB", "share of plain", "time, share of plain"),
            rows,
            "Kept: by the blocks between the forward and the backward pass. Mean and 95 % interval over rounds",
        ),
    )
    return Report(
        name="checkpointing",
        title="Compute for memory: activation checkpointing, measured on this machine",
        introduction=["What a step keeps and how long it takes, when every k-th block is computed a second time."],
        chapters=[chapter],
        data={"checkpointing": Table(("round", "every", "kept_bytes", "seconds", "largest_difference"), data)},
    )


def _name(every: int) -> str:
    return {0: "none", 1: "every block"}.get(every, f"every {every}th block" if every > 2 else "every 2nd block")


def _mib(records: list[dict[str, Any]], every: int) -> float:
    return float(records[0][str(every)]["kept"]) / 2**20


def _half(found: Interval) -> float:
    return found.high - found.mean if found.seeds > 1 else 0.0
