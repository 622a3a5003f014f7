"""Two variants trained side by side: which ends with the lower loss, at the best rate of each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..page import Table
from .drawing import draw_lines
from .folder import Cells
from .intervals import Claim, Finding, Interval, interval
from .model import SMALL, XAVIER, Sizes
from .report import Chapter, Drawing
from .training import TrainingCell


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Trainings of two variants that differ in nothing else, at each rate and with each seed."""

    ours: str
    other: str
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    depth: int = 4
    warmup: int = 40
    steps: int = 200
    sizes: Sizes = SMALL

    def cells(self) -> Iterator[TrainingCell]:
        """All trainings."""
        for variant in (self.ours, self.other):
            for rate in self.rates:
                yield from (self.cell(variant, rate, seed) for seed in self.seeds)

    def cell(self, variant: str, rate: float, seed: int) -> TrainingCell:
        """One training."""
        return TrainingCell(
            variant=variant,
            start=XAVIER,
            depth=self.depth,
            rate=rate,
            warmup=self.warmup,
            steps=self.steps,
            seed=seed,
            sizes=self.sizes,
        )

    def at(self, seed: int, *, quick: bool) -> "Comparison":
        """The same with seeds from this one on; quick: fewer of everything."""
        scale = replace(self, seeds=tuple(range(seed, seed + len(self.seeds))))
        return replace(scale, seeds=scale.seeds[:3], rates=self.rates[:2], steps=100, warmup=20) if quick else scale

    def losses(self, cells: Cells, variant: str, rate: float) -> list[float]:
        """The held-out losses of all seeds, NaN for a training that diverged."""
        found = [(cells.get(self.cell(variant, rate, seed)) or {})["loss"] for seed in self.seeds]
        return [math.nan if one is None else float(one) for one in found]

    def difference(self, cells: Cells) -> Interval | None:
        """The other's loss less ours, over pairs of the same seed, each at its best rate; None where one diverged."""
        best = []
        for variant in (self.ours, self.other):
            by_rate = [self.losses(cells, variant, rate) for rate in self.rates]
            whole = [one for one in by_rate if all(map(math.isfinite, one))]
            if not whole:
                return None
            best.append(min(whole, key=sum))
        ours, others = best
        return interval([other - mine for mine, other in zip(ours, others, strict=True)])

    def parameters(self, cells: Cells, variant: str) -> int:
        """How many weights a model of this variant has."""
        return int((cells.get(self.cell(variant, self.rates[0], self.seeds[0])) or {})["parameters"])

    def chapter(self, cells: Cells, title: str, claim: Claim, names: dict[str, str]) -> Chapter:
        """What was found. names: how the page calls the variants."""
        found = self.difference(cells)
        means = {variant: [_mean(self.losses(cells, variant, rate)) for rate in self.rates] for variant in names}

        def draw(axes: Any) -> None:
            lines = {names[variant]: (self.rates, means[variant]) for variant in names}
            draw_lines(axes, lines, xlabel="learning rate", ylabel="held-out loss, nats a byte", xscale="log")
            axes.legend()

        rows = [
            (
                names[variant],
                self.parameters(cells, variant),
                *map(_shown, (self.losses(cells, variant, rate) for rate in self.rates)),
            )
            for variant in names
        ]
        return Chapter(
            title=title,
            text=[
                f"Models of depth {self.depth} and width {self.sizes.d_model}, {self.steps} steps of "
                f"{self.sizes.batch} x {self.sizes.context} bytes, {len(self.seeds)} seeds, the same text for both. "
                f"Each at its best rate, {names[self.other]} ends {found or 'with no number'} nats a byte "
                f"above {names[self.ours]}.",
            ],
            findings=[Finding(claim, found)],
            drawing=Drawing(name="loss", draw=draw, alt="Held-out loss over the learning rate, a line a variant."),
            table=Table(
                ("variant", "parameters", *(f"rate {rate:g}" for rate in self.rates)),
                rows,
                "Held-out loss, nats a byte: mean and 95 % interval over seeds",
            ),
        )

    def data(self, cells: Cells) -> Table:
        """Every training, a row each."""
        rows = [
            (
                *(cell.variant, cell.depth, cell.rate, cell.warmup, cell.steps, cell.seed),
                found["parameters"],
                found["loss"],
            )
            for cell in self.cells()
            if (found := cells.get(cell)) is not None
        ]
        columns = ("variant", "depth", "learning_rate", "warmup_steps", "steps", "seed", "parameters", "heldout_loss")
        return Table(columns, rows)


def _mean(losses: list[float]) -> float | None:
    return interval(losses).mean if all(map(math.isfinite, losses)) else None


def _shown(losses: list[float]) -> str:
    diverged = sum(not math.isfinite(one) for one in losses)
    return f"{diverged} of {len(losses)} diverged" if diverged else str(interval(losses))
