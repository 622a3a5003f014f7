"""`prenorm lab norm`: RMSNorm against LayerNorm, in loss and in time."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.layer_norm import LayerNorm
from ..layers.norm import RMSNorm
from ..page import Table
from .comparison import Comparison
from .experiment import Experiment
from .folder import Cells
from .intervals import Claim, Finding, Interval, interval
from .report import Chapter, Drawing, Report
from .sweep import Plan

SOURCE = "Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467"
SAME_LOSS = Claim("RMSNorm reaches the loss of LayerNorm, within 0.02 nats a byte", SOURCE, -0.02, 0.02)
COMPARISON = Comparison(ours="pre-norm", other="LayerNorm")
SHAPES = ((256, 768), (1024, 1024), (4096, 1024))  # tokens, width
ROUNDS = 5
CALLS = 20  # of each norm in a round, in turn


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedCell:
    """Forward and backward of both norms, in turn, so that what disturbs one disturbs the other."""

    tokens: int
    d_model: int
    dtype: str
    round: int

    @property
    def cost(self) -> float:
        return float(self.tokens * self.d_model)

    def measure(self) -> dict[str, Any]:
        """Median seconds of a call of each, and LayerNorm's over RMSNorm's."""
        torch.manual_seed(self.round)
        dtype = getattr(torch, self.dtype)
        x = torch.randn(self.tokens, self.d_model, dtype=dtype, requires_grad=True)
        gradient = torch.randn_like(x)
        norms: dict[str, nn.Module] = {
            "rms_norm": RMSNorm(self.d_model, dtype=dtype),
            "layer_norm": LayerNorm(self.d_model, dtype=dtype),
        }
        seconds: dict[str, list[float]] = {name: [] for name in norms}
        for _ in range(CALLS + 1):
            for name, norm in norms.items():
                seconds[name].append(_seconds(norm, x, gradient))
        medians = {name: statistics.median(one[1:]) for name, one in seconds.items()}  # the first fills caches
        return {**medians, "ratio": medians["layer_norm"] / medians["rms_norm"]}


def norm_experiment(comparison: Comparison = COMPARISON, shapes: tuple[tuple[int, int], ...] = SHAPES) -> Experiment:
    """Trainings with either norm, then their times."""
    speeds = [
        SpeedCell(tokens=tokens, d_model=d_model, dtype=dtype, round=number)
        for tokens, d_model in shapes
        for dtype in ("float32", "bfloat16")
        for number in range(ROUNDS)
    ]
    return Experiment(
        name="norm",
        plan=lambda cells: Plan(list(comparison.cells())),
        timed=lambda cells: Plan(speeds),
        report=lambda cells: _report(comparison, speeds, cells),
    )


def _report(comparison: Comparison, speeds: list[SpeedCell], cells: Cells) -> Report:
    names = {"pre-norm": "RMSNorm", "LayerNorm": "LayerNorm"}
    columns = ("tokens", "width", "dtype", "round", "rms_norm_seconds", "layer_norm_seconds")
    rows = [
        (one.tokens, one.d_model, one.dtype, one.round, found["rms_norm"], found["layer_norm"])
        for one in speeds
        if (found := cells.get(one)) is not None
    ]
    return Report(
        name="norm",
        title="Is RMSNorm enough? Measured on this machine",
        introduction=[
            "The pre-norm block with RMSNorm, as it is, and with LayerNorm: first what they learn, then what they "
            "cost. Small models and short trainings on Python's own standard library.",
        ],
        chapters=[
            comparison.chapter(cells, "Does RMSNorm reach LayerNorm's loss?", SAME_LOSS, names),
            _speed(speeds, cells),
        ],
        data={"trainings": comparison.data(cells), "speeds": Table(columns, rows)},
    )


def _speed(speeds: list[SpeedCell], cells: Cells) -> Chapter:
    by_shape: dict[tuple[int, int, str], list[float]] = {}
    for one in speeds:
        ratio = float((cells.get(one) or {})["ratio"])
        by_shape.setdefault((one.tokens, one.d_model, one.dtype), []).append(ratio)
    found = {shape: interval(ratios) for shape, ratios in by_shape.items()}
    findings = [
        Finding(Claim(f"RMSNorm is faster than LayerNorm ({_name(shape)})", SOURCE, 1.0, float("inf")), one)
        for shape, one in found.items()
    ]

    def draw(axes: Any) -> None:
        places = range(len(found))
        means, halves = [one.mean for one in found.values()], [one.high - one.mean for one in found.values()]
        axes.barh(places, means, xerr=halves, capsize=3)
        axes.set_yticks(places, [_name(shape) for shape in found])
        axes.invert_yaxis()
        axes.axvline(1.0, color="gray", linestyle=":")
        axes.set_xlabel("time of LayerNorm / time of RMSNorm; above 1, RMSNorm is faster")

    return Chapter(
        title="Is RMSNorm faster than LayerNorm, here?",
        text=[
            "Forward and backward of the norm alone, one thread, both in turn: how many times as long LayerNorm takes, "
            f"mean and 95 % interval over {ROUNDS} rounds. Times are those of this machine, at this hour; the paper's "
            "7 to 64 % are of whole models, on GPUs. `prenorm.explain()` says which kernel ran.",
        ],
        findings=findings,
        drawing=Drawing(
            name="speed", draw=draw, alt="How many times as long LayerNorm takes as RMSNorm, a bar a shape."
        ),
        table=Table(
            ("tokens", "width", "dtype", "LayerNorm / RMSNorm"), [(*shape, _cell(one)) for shape, one in found.items()]
        ),
    )


def _name(shape: tuple[int, int, str]) -> str:
    tokens, d_model, dtype = shape
    return f"{tokens} x {d_model}, {dtype}"


def _cell(found: Interval) -> str:
    return str(found)


def _seconds(norm: nn.Module, x: Tensor, gradient: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(norm(x), [x, *norm.parameters()], gradient)
    return time.perf_counter() - start
