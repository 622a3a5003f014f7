"""Which cells the depth experiment has, quick, as a rule, and in full."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..folder import Cells
from ..model import SMALL, STARTS, XAVIER, Sizes
from ..sweep import Plan
from ..training import TrainingCell
from ..variants import VARIANTS
from .initialisation import InitialCell

WITH_AND_WITHOUT_WARMUP = ("pre-norm", "post-norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much is measured.

    Learning rates are swept at `sweep_depth` with the first seed; each depth of `depths` is then trained at the best.
    `whole_grid`: every depth, rate and start, with and without warm-up, with all seeds.
    """

    initial_depths: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    sweep_depth: int = 16
    depths: tuple[int, ...] = (4, 16, 64)
    warmup_depths: tuple[int, ...] = (4, 16)
    warmup_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    warmup: int = 40
    steps: int = 200
    sizes: Sizes = SMALL
    whole_grid: bool = False

    @property
    def training_starts(self) -> tuple[str, ...]:
        return STARTS if self.whole_grid else (XAVIER,)

    def from_seed(self, seed: int) -> "Scale":
        """The same with seeds from this one on."""
        return replace(self, seeds=tuple(range(seed, seed + len(self.seeds))))

    def training(self, variant: str, depth: int, rate: float, seed: int, **other: object) -> TrainingCell:
        """A training as most are: from Xavier's start, with warm-up."""
        cell = TrainingCell(
            variant=variant,
            start=XAVIER,
            depth=depth,
            rate=rate,
            warmup=self.warmup,
            steps=self.steps,
            seed=seed,
            sizes=self.sizes,
        )
        return replace(cell, **other)  # type: ignore[arg-type]  # its own fields


DEFAULT = Scale()
QUICK = Scale(
    initial_depths=(2, 4, 8, 16, 32),
    rates=(3e-3, 1e-2),
    sweep_depth=4,
    depths=(2, 8),
    warmup_depths=(4,),
    warmup_rates=(3e-3, 1e-2),
    warmup=12,
    steps=60,
)
FULL = replace(DEFAULT, depths=(2, 4, 8, 16, 32, 64, 128), warmup_depths=(4, 16, 64), whole_grid=True)


def plan(scale: Scale, cells: Cells) -> Plan:
    """What to measure, given what is measured: the best rates are known when all rates are."""
    known: list[InitialCell | TrainingCell] = [*initial_cells(scale), *_warmup_cells(scale)]
    later = 0.0
    if scale.whole_grid:
        return Plan([*known, *_grid(scale)])
    for variant in VARIANTS:
        swept = [scale.training(variant, scale.sweep_depth, rate, scale.seeds[0]) for rate in scale.rates]
        known += swept
        if all(cells.get(cell) for cell in swept):
            rate = best_rate(scale, cells, variant, XAVIER, scale.sweep_depth)
            known += [scale.training(variant, depth, rate, seed) for depth in scale.depths for seed in scale.seeds]
        else:
            later += sum(scale.training(variant, depth, 0.0, 0).cost for depth in scale.depths) * len(scale.seeds)
    return Plan(known, later)


def initial_cells(scale: Scale) -> Iterator[InitialCell]:
    """Every model that is looked at before it learns."""
    for variant in VARIANTS:
        for start in STARTS:
            for depth in scale.initial_depths:
                for seed in scale.seeds:
                    yield InitialCell(variant=variant, start=start, depth=depth, seed=seed, sizes=scale.sizes)


def best_rate(scale: Scale, cells: Cells, variant: str, start: str, depth: int) -> float:
    """The rate of the least mean loss: at this depth in the whole grid, else at the sweep's depth, with one seed."""
    depth, seeds = (depth, scale.seeds) if scale.whole_grid else (scale.sweep_depth, scale.seeds[:1])

    def loss(rate: float) -> float:
        return sum(loss_of(cells, scale.training(variant, depth, rate, seed, start=start), math.inf) for seed in seeds)

    return min(scale.rates, key=loss)


def loss_of(cells: Cells, cell: TrainingCell, failed: float) -> float:
    """The held-out loss of a training; `failed` for one that diverged."""
    found = (cells.get(cell) or {}).get("loss")
    return failed if found is None else float(found)


def _warmup_cells(scale: Scale) -> Iterator[TrainingCell]:
    for variant in WITH_AND_WITHOUT_WARMUP:
        for depth in scale.warmup_depths:
            for rate in scale.warmup_rates:
                for warmup in (scale.warmup, 0):
                    for seed in scale.seeds:
                        yield scale.training(variant, depth, rate, seed, warmup=warmup)


def _grid(scale: Scale) -> Iterator[TrainingCell]:
    depths: Sequence[int] = sorted({*scale.depths, scale.sweep_depth})
    for variant in VARIANTS:
        for start in STARTS:
            for depth in depths:
                for rate in scale.rates:
                    for warmup in (scale.warmup, 0):
                        for seed in scale.seeds:
                            yield scale.training(variant, depth, rate, seed, start=start, warmup=warmup)
