"""`prenorm lab rope`: do scores see only distances, and what do bfloat16 tables do to far positions?"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers.rope import RotaryEmbedding
from ..ops.rope import rotate
from ..ops.rope_frequencies import rope_frequencies
from ..page import Table
from .drawing import draw_lines
from .experiment import Experiment
from .folder import Cells
from .intervals import Claim, Finding, interval
from .report import Chapter, Drawing, Report
from .sweep import Plan

SU = "Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3"
POSITIONS = (0, 100, 1_000, 10_000, 100_000, 1_000_000)
SEEDS = 5
HEAD_DIM, PAIRS, MOST_DISTANCE, THETA = 64, 256, 64, 10_000.0

Tables = tuple[Tensor, Tensor]
OURS, FLOAT32_ANGLES = "float64 angles, float32 tables (prenorm)", "float32 angles and tables"
BFLOAT16_TABLES, BFLOAT16_ANGLES = "float64 angles, bfloat16 tables", "bfloat16 angles and tables"


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeCell:
    """Queries and keys at some distances from each other, at a position, rotated by tables of a kind."""

    tables: str
    position: int
    seed: int

    @property
    def cost(self) -> float:
        return 1.0

    def measure(self) -> dict[str, Any]:
        """`apart`: how much the scores differ from those at position 0, the largest, as a share of |q| |k|.

        Those at 0 are computed in float64. Rotation keeps lengths, so 2 would be the most.
        """
        generator = torch.Generator().manual_seed(self.seed)
        q, k = (torch.randn(PAIRS, HEAD_DIM, dtype=torch.float64, generator=generator) for _ in range(2))
        distances = torch.randint(MOST_DISTANCE, (PAIRS,), generator=generator)
        near = _scores(q, k, _exact(distances), _exact(torch.zeros_like(distances)))
        make = TABLES[self.tables]
        here = torch.full_like(distances, self.position)
        far = _scores(q.float(), k.float(), make(here + distances), make(here)).double()
        return {"apart": float(((far - near).abs() / (q.norm(dim=-1) * k.norm(dim=-1))).max())}


def rope_experiment(seed: int = 0, *, positions: tuple[int, ...] = POSITIONS) -> Experiment:
    """All kinds of tables at all positions, with seeds from this one on."""
    measured = [
        RopeCell(tables=tables, position=position, seed=one)
        for tables in TABLES
        for position in positions
        for one in range(seed, seed + SEEDS)
    ]
    return Experiment(
        name="rope",
        plan=lambda cells: Plan(measured),
        report=lambda cells: _report(measured, cells),
        reads_text=False,
    )


def _scores(q: Tensor, k: Tensor, of_q: Tables, of_k: Tables) -> Tensor:
    turned = [rotate(one, *tables, interleaved=True) for one, tables in ((q, of_q), (k, of_k))]
    return (turned[0] * turned[1]).sum(-1)


def _exact(positions: Tensor) -> Tables:
    angles = positions[:, None].double() * rope_frequencies(HEAD_DIM, THETA)
    return angles.cos(), angles.sin()


def _ours(positions: Tensor) -> Tables:
    return RotaryEmbedding(HEAD_DIM, int(positions.max()) + 1, THETA).cos_sin(positions, torch.float32)


def _float32_angles(positions: Tensor) -> Tables:
    angles = positions[:, None].float() * rope_frequencies(HEAD_DIM, THETA).float()
    return angles.cos(), angles.sin()


def _bfloat16_tables(positions: Tensor) -> Tables:
    cos, sin = _exact(positions)
    return cos.bfloat16().float(), sin.bfloat16().float()


def _bfloat16_angles(positions: Tensor) -> Tables:
    """As a module has them whose frequencies are a buffer, after .to(torch.bfloat16)."""
    angles = positions[:, None].bfloat16() * rope_frequencies(HEAD_DIM, THETA).bfloat16()
    return angles.cos().float(), angles.sin().float()


TABLES: dict[str, Callable[[Tensor], Tables]] = {
    OURS: _ours,
    FLOAT32_ANGLES: _float32_angles,
    BFLOAT16_TABLES: _bfloat16_tables,
    BFLOAT16_ANGLES: _bfloat16_angles,
}


def _report(measured: list[RopeCell], cells: Cells) -> Report:
    values: dict[tuple[str, int], list[float]] = {}
    for cell in measured:
        values.setdefault((cell.tables, cell.position), []).append((cells.get(cell) or {})["apart"])
    found = {key: interval(one) for key, one in values.items()}
    positions = sorted({position for _, position in found})
    far = positions[-1]
    findings = [
        Finding(
            Claim(f"scores depend on the distance alone, here to 1e-5 of |q| |k|, at position {far:,}", SU, 0.0, 1e-5),
            found[OURS, far],
        ),
        Finding(
            Claim(f"rounding cos and sin to bfloat16 costs less than 1 %, also at {far:,}", "common lore", 0.0, 0.01),
            found[BFLOAT16_TABLES, far],
        ),
        Finding(
            Claim(
                f"angles in bfloat16 are as good as none at {far:,}: scores are off by more than a tenth",
                "common lore",
                0.1,
                math.inf,
            ),
            found[BFLOAT16_ANGLES, far],
        ),
    ]
    same = len(torch.arange(4096, 8192).bfloat16().unique())

    def draw(axes: Any) -> None:
        lines = {
            tables: ([max(position, 1) for position in positions], [found[tables, one].mean for one in positions])
            for tables in TABLES
        }
        scales = {"xscale": "log", "yscale": "log"}
        draw_lines(axes, lines, xlabel="position", ylabel="largest error of a score, share of |q| |k|", **scales)
        axes.legend(fontsize="small")

    chapter = Chapter(
        title="Do scores see only distances?",
        text=[
            f"{PAIRS} queries and keys at most {MOST_DISTANCE} tokens from each other, {HEAD_DIM} features a head: the "
            "same pairs at position 0, in float64, and far out, with tables of four kinds. The figure is the largest "
            "difference of a score, as a share of the most that it can be.",
            "Rounded cosines and sines cost the same everywhere. Rounded angles cost more, the farther out: bfloat16 "
            f"has 8 bits, so that of the 4,096 positions from 4,096 on it can tell {same} apart.",
        ],
        findings=findings,
        drawing=Drawing(
            name="rope", draw=draw, alt="Error of scores over the position, a line for each kind of table."
        ),
        table=Table(
            ("tables", *(f"at {position:,}" for position in positions)),
            [(tables, *(str(found[tables, position]) for position in positions)) for tables in TABLES],
            "Largest difference, share of |q| |k|: mean and 95 % interval over seeds",
        ),
    )
    rows = [(cell.tables, cell.position, cell.seed, (cells.get(cell) or {})["apart"]) for cell in measured]
    return Report(
        name="rope",
        title="Rotary positions: what precision do they need? Measured on this machine",
        introduction=["Rotary embedding turns queries and keys so that their score depends on their distance alone."],
        chapters=[chapter],
        data={"rope": Table(("tables", "position", "seed", "largest_difference"), rows)},
    )
