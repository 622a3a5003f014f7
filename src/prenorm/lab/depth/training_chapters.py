"""After training: what depth, learning rate and warm-up do to the held-out loss."""

import math
from typing import Any

from ...page import Table
from ..drawing import draw_bars, draw_lines
from ..folder import Cells
from ..intervals import Claim, Finding, Interval, interval
from ..report import Chapter, Drawing
from ..text import byte_entropy
from ..training import TrainingCell
from ..variants import VARIANTS
from .initial_chapters import LORE, XIONG
from .plan import WITH_AND_WITHOUT_WARMUP, Scale, best_rate, loss_of, plan

LEARNED = 0.1  # nats a byte below what the bytes' frequencies alone give: a model that gained less has not learned
KNOWING_NOTHING = math.log(256)  # nats a byte
MATTERS = 0.05  # nats a byte: a smaller difference is not what anybody means by "needs"


class Trained:
    """The trainings, by what they differ in."""

    def __init__(self, scale: Scale, cells: Cells) -> None:
        self.scale, self.cells = scale, cells
        self.frequencies = byte_entropy()

    def loss(self, variant: str, depth: int, rate: float, seed: int, **other: Any) -> float:
        """The held-out loss; NaN where the training diverged."""
        return loss_of(self.cells, self.scale.training(variant, depth, rate, seed, **other), math.nan)

    def losses(self, variant: str, depth: int, rate: float, **other: Any) -> list[float]:
        """Those of all seeds."""
        return [self.loss(variant, depth, rate, seed, **other) for seed in self.scale.seeds]

    def best(self, variant: str, depth: int, start: str) -> list[float]:
        """The losses of all seeds at the variant's best rate."""
        rate = best_rate(self.scale, self.cells, variant, start, depth)
        return self.losses(variant, depth, rate, start=start)

    def cost_of_none(self, with_warmup: list[float], without: list[float]) -> Interval | None:
        """How much higher the loss is without warm-up; None where even with it nothing was learned."""
        return _difference(without, with_warmup) if self.has_learned(with_warmup) else None

    def has_learned(self, losses: list[float]) -> bool:
        """Whether the losses, all of them there, are well below what the frequencies of bytes alone give."""
        return all(map(math.isfinite, losses)) and sum(losses) / len(losses) < self.frequencies - LEARNED


def training_chapters(scale: Scale, cells: Cells) -> list[Chapter]:
    """The chapters about models that were trained."""
    trained = Trained(scale, cells)
    by_depth = [_depths(trained, start) for start in scale.training_starts]
    return [_rates(trained), *by_depth, *(_warmup(trained, depth) for depth in scale.warmup_depths)]


def _rates(trained: Trained) -> Chapter:
    scale = trained.scale
    seed = scale.seeds[0]
    losses = {v: [trained.loss(v, scale.sweep_depth, rate, seed) for rate in scale.rates] for v in VARIANTS}
    rows = [
        (v, *_shown(losses[v]), scale.rates[losses[v].index(min(whole))] if (whole := _finite(losses[v])) else None)
        for v in VARIANTS
    ]
    edge = [str(row[0]) for row in rows if row[-1] in (scale.rates[0], scale.rates[-1])]
    at_edge = f" At the edge of the sweep, where a further rate might be better: {', '.join(edge)}." if edge else ""

    def draw(axes: Any) -> None:
        lines = {v: (scale.rates, _shown(losses[v])) for v in VARIANTS}
        draw_lines(axes, lines, xlabel="learning rate", ylabel="held-out loss, nats a byte", xscale="log")
        _floor(axes, trained)

    return Chapter(
        title="Which learning rate does each variant want?",
        text=[
            f"The held-out loss after {scale.steps} steps at depth {scale.sweep_depth}, with a warm-up of "
            f"{scale.warmup} steps, from Xavier's start, seed {seed}.{at_edge} Empty: a loss was not finite. To "
            f"know nothing but how frequent bytes are costs {trained.frequencies:.3f} nats a byte (the dotted line).",
        ],
        drawing=Drawing(
            name="learning-rates", draw=draw, alt="Held-out loss over the learning rate, a line a variant."
        ),
        table=Table(("variant", *(f"{rate:g}" for rate in scale.rates), "best rate"), rows, "Nats a byte"),
    )


def _depths(trained: Trained, start: str) -> Chapter:
    scale, depths = trained.scale, trained.scale.depths
    losses = {(v, depth): trained.best(v, depth, start) for v in VARIANTS for depth in depths}
    found = {key: _interval(one) for key, one in losses.items()}
    shallow, deep = depths[0], depths[-1]
    behind = _difference(losses["post-norm", deep], losses["pre-norm", deep])
    lost = _difference(losses["pre-norm", deep], losses["pre-norm", shallow])
    findings = [
        Finding(
            Claim(
                f"at depth {deep} post-norm ends with a higher loss than pre-norm ({start} start)",
                LORE,
                0.0,
                math.inf,
            ),
            behind,
        ),
        Finding(
            Claim(
                f"pre-norm ends no worse at depth {deep} than at depth {shallow} ({start} start)",
                LORE,
                -math.inf,
                0.0,
            ),
            lost,
        ),
    ]
    stuck = [v for v in VARIANTS if not trained.has_learned(losses[v, deep])]
    rows = [
        (
            v,
            best_rate(scale, trained.cells, v, start, deep),
            *(_cell(found[v, depth], losses[v, depth]) for depth in depths),
        )
        for v in VARIANTS
    ]

    def draw(axes: Any) -> None:
        for v in VARIANTS:
            points = [(depth, one) for depth in depths if (one := found[v, depth]) is not None]
            if points:
                means = [one.mean for _, one in points]
                draw_bars(axes, v, [depth for depth, _ in points], means, [_half(one) for _, one in points])
        axes.set(xscale="log", xlabel="blocks", ylabel="held-out loss, nats a byte")
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
        _floor(axes, trained)

    return Chapter(
        title=f"Which variants train when they are deep? ({start} start)",
        text=[
            f"The held-out loss after {scale.steps} steps at the variant's best rate, mean and 95 % interval over "
            f"{len(scale.seeds)} seeds. At depth {deep} these learned no more than how frequent bytes are, or "
            f"diverged: {', '.join(stuck) or 'none'}. In differences a training that diverged counts as one that knows "
            f"nothing, {KNOWING_NOTHING:.3f} nats a byte.",
            f"{scale.steps} steps are a beginning: they say which variants start to learn at once, and nothing about "
            "where long trainings end.",
        ],
        findings=findings,
        drawing=Drawing(
            name=f"depths-{start.lower()}", draw=draw, alt="Held-out loss over depth with intervals, a line a variant."
        ),
        table=Table(("variant", "rate", *(f"depth {depth}" for depth in depths)), rows, "Nats a byte"),
    )


def _warmup(trained: Trained, depth: int) -> Chapter:
    scale = trained.scale
    rates = scale.warmup_rates
    losses = {
        (v, warmup): {rate: trained.losses(v, depth, rate, warmup=warmup) for rate in rates}
        for v in WITH_AND_WITHOUT_WARMUP
        for warmup in (scale.warmup, 0)
    }
    best = {key: min(one.values(), key=_mean) for key, one in losses.items()}
    costs = {v: trained.cost_of_none(best[v, scale.warmup], best[v, 0]) for v in WITH_AND_WITHOUT_WARMUP}
    highest = rates[-1]
    at_highest = {
        v: trained.cost_of_none(losses[v, scale.warmup][highest], losses[v, 0][highest])
        for v in WITH_AND_WITHOUT_WARMUP
    }
    source = f"{XIONG}, abstract"
    places = ((costs, f"at its best rate, depth {depth}"), (at_highest, f"at the rate {highest:g}, depth {depth}"))
    findings = [
        Finding(Claim(f"{claim} ({place})", source, *bounds), cost[v])
        for v, claim, bounds in (
            ("post-norm", "post-norm needs warm-up: without, the loss is higher", (MATTERS, math.inf)),
            ("pre-norm", "pre-norm does without warm-up", (-math.inf, MATTERS)),
        )
        for cost, place in places
    ]
    rows = [
        (v, warmup, *(_cell(_interval(one[rate]), one[rate]) for rate in rates)) for (v, warmup), one in losses.items()
    ]
    told = {
        v: f"{v}'s loss is higher by {one} at its best rate, and by {at_highest[v] or 'no number'} at {highest:g}"
        if (one := costs[v])
        else f"{v} learned no more than how frequent bytes are even with warm-up, so nothing can be compared"
        for v in WITH_AND_WITHOUT_WARMUP
    }

    def draw(panels: Any) -> None:
        for axes, v in zip(panels, WITH_AND_WITHOUT_WARMUP, strict=True):
            for place, warmup in enumerate((scale.warmup, 0)):
                points = [(rate, one) for rate in rates if (one := _interval(losses[v, warmup][rate])) is not None]
                if points:
                    x, found = zip(*points, strict=True)
                    label, halves = f"{warmup} steps of warm-up", [_half(one) for one in found]
                    means = [one.mean for one in found]
                    axes.errorbar(x, means, halves, color=f"C{place}", marker="os"[place], capsize=3, label=label)
            axes.set(title=f"{v}, {depth} blocks", xscale="log", xlabel="learning rate", ylabel="held-out loss")
            _floor(axes, trained)

    return Chapter(
        title=f"Does post-norm need warm-up? (depth {depth})",
        text=[
            f"Pre-norm and post-norm at depth {depth}, {scale.steps} steps, with a warm-up of {scale.warmup} steps and "
            f"without, each at the best of {len(rates)} rates and at the highest. Without warm-up, "
            f"{told['post-norm']}; {told['pre-norm']} (nats a byte; below 0 it is lower). "
            f"Less than {MATTERS:g} nats a byte do not count as a need.",
        ],
        findings=findings,
        drawing=Drawing(
            name=f"warmup-{depth}",
            draw=draw,
            alt="Held-out loss over the learning rate, with and without warm-up, for pre-norm and post-norm.",
            size=(10.0, 4.5),
            panels=(1, 2),
        ),
        table=Table(("variant", "warm-up steps", *(f"{rate:g}" for rate in rates)), rows, "Nats a byte"),
    )


def _floor(axes: Any, trained: Trained) -> None:
    axes.axhline(trained.frequencies, color="gray", linestyle=":", label="frequencies of bytes alone")
    axes.legend(fontsize="small")


def _interval(losses: list[float]) -> Interval | None:
    return interval(losses) if all(map(math.isfinite, losses)) else None


def _difference(ones: list[float], others: list[float]) -> Interval | None:
    """Over pairs of the same seed, which read the same text. A training that diverged counts as knowing nothing."""
    counted = [[one if math.isfinite(one) else KNOWING_NOTHING for one in losses] for losses in (ones, others)]
    return interval([one - other for one, other in zip(*counted, strict=True)])


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.inf


def _half(found: Interval) -> float:
    return found.high - found.mean if math.isfinite(found.high) else 0.0


def _finite(losses: list[float]) -> list[float]:
    return [one for one in losses if math.isfinite(one)]


def _shown(losses: list[float]) -> list[float | None]:
    return [one if math.isfinite(one) else None for one in losses]


def _cell(found: Interval | None, losses: list[float]) -> str:
    diverged = sum(not math.isfinite(one) for one in losses)
    return f"{diverged} of {len(losses)} diverged" if found is None else str(found)


def training_data(scale: Scale, cells: Cells) -> Table:
    """Every training, a row each; the loss is empty where it diverged."""
    trainings = dict.fromkeys(cell for cell in plan(scale, cells).cells if isinstance(cell, TrainingCell))
    rows = [
        (
            *(cell.variant, cell.start, cell.depth, cell.rate, cell.warmup, cell.steps, cell.seed),
            (cells.get(cell) or {})["parameters"],
            (cells.get(cell) or {})["loss"],
        )
        for cell in trainings
    ]
    columns = ("variant", "start", "depth", "learning_rate", "warmup_steps", "steps", "seed", "parameters")
    return Table((*columns, "heldout_loss"), rows)
