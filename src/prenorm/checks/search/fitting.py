"""Fits numbers that no list can have, such as theta."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formula.parameters import Pieces, weights
from ..formula.reference import block
from ..formula.spec import Number, Spec, Weights
from .switches import Switch
from .trials import Base, Probe, Trials
from .work import AT_ONCE, units

MOST_READINGS = 12
MOST_PAIRS = 8  # in a head; one with fewer pairs uses the first
REFINED = 3  # specs whose number is refined, of those that come nearest
REFINED_FAULTY = 8  # of those with a fault, of which several come equally close at first
ROUNDS = 6  # of refining, in each of which the interval shrinks to 2 / PLACES: to some 1e-9 of it
PLACES = 64


@dataclass(frozen=True, slots=True)
class Fit:
    """A number of a spec: the start values, on a logarithmic scale, and the cost of a fitted one."""

    name: str
    lowest: float
    highest: float
    starts: int
    cost: int

    def set(self, spec: Spec, number: Number) -> Spec:
        """The spec with this number."""
        every = self.name == "frequencies"  # the same for every pair
        changes: Switch = {self.name: (number,) * MOST_PAIRS if every else number}
        return dataclasses.replace(spec, **changes)

    def at(self, places: Tensor) -> Tensor:
        """The numbers at places between 0 and starts - 1."""
        return self.lowest * (self.highest / self.lowest) ** (places / (self.starts - 1))


THETA = Fit("theta", 2.0, 2.0**31, 60, 0)
USUAL_THETA = Fit("theta", 200.0, 5e7, 36, 0)  # excludes values that a wrong exponent makes of 10,000
PAIR = Fit("frequencies", 1e-6, 7.0, 60, 0)
SOFTCAP = Fit("softcap", 0.5, 500.0, 20, 0)
FACTOR = Fit("factor", 2.0**-7, 2.0**7, 40, 1)
BRANCH = Fit("branch", 2.0**-7, 2.0**4, 40, 0)


def fitted(
    fit: Fit, bases: Sequence[Base], readings: list[Pieces], probe: Probe, trials: Trials, *, faulty: bool = False
) -> list[Base]:
    """Bases with the number that comes closest to the probe's output, the closest first.

    trials: those whose work it shares; faulty: whether the bases have a fault beside the number.
    """
    stacked = [weights([reading], probe.raw) for reading in readings[:MOST_READINGS]]
    gaps = _gaps(stacked, probe, trials.num_heads)
    work = trials.work.part(AT_ONCE)
    once = sum(units(values, fit.starts // 2, probe.x.shape[-2]) for values in stacked)  # half is common to all numbers
    coarse = []
    for spec, cost in bases:
        if not work.spend(once):
            trials.cut_short |= not faulty
            break
        near = gaps(fit.set(spec, fit.at(torch.arange(fit.starts, dtype=torch.float64))))
        least = int(near.argmin())
        coarse.append((float(near[least]), least, spec, cost))
    found = []
    for _, place, spec, cost in sorted(coarse, key=lambda one: one[0])[: REFINED_FAULTY if faulty else REFINED]:
        if not work.spend(once * ROUNDS):
            trials.cut_short |= not faulty
            break
        value, least_gap = _refined(fit, spec, gaps, float(place))
        if least_gap > 100 * probe.tolerance:
            continue
        rounded = [float(f"{value:.{digits}e}") for digits in range(6)]
        as_near = gaps(fit.set(spec, torch.tensor(rounded, dtype=torch.float64)))
        good = as_near <= max(2 * least_gap, 0.02 * probe.tolerance)
        value = next((one for one, is_good in zip(rounded, good.tolist(), strict=True) if is_good), value)
        found.append((least_gap, (fit.set(spec, value), cost + fit.cost)))
    return [base for _, base in sorted(found, key=lambda one: one[0])]


def _refined(fit: Fit, spec: Spec, gaps: Callable[[Spec], Tensor], place: float) -> tuple[float, float]:
    """The number with the smallest gap between the neighbours of a place, and that gap."""
    low, high = place - 1.0, place + 1.0
    for _ in range(ROUNDS):
        places = torch.linspace(low, high, PLACES + 1, dtype=torch.float64)
        near = gaps(fit.set(spec, fit.at(places)))
        least = int(near.argmin())
        low, high = float(places[max(least - 1, 0)]), float(places[min(least + 1, PLACES)])
    return float(fit.at(places[least])), float(near[least])


def _gaps(stacked: list[Weights], probe: Probe, num_heads: int) -> Callable[[Spec], Tensor]:
    """A function from a spec with many numbers to their gaps: the largest error relative to the output's size.

    Each gap is that of the best reading.
    """
    x, y = probe.x[:1], probe.y[:1]  # a sequence tells them apart
    scale = float(torch.where(torch.isfinite(y), y, 0).abs().max().clamp(min=1e-9))

    def gaps(spec: Spec) -> Tensor:
        found = []
        with torch.inference_mode():
            for values in stacked:
                try:
                    error = (block(spec, values, x, probe.positions, num_heads) - y).abs()
                except RuntimeError:  # the spec does not fit these shapes
                    continue
                found.append(error.nan_to_num(math.inf).flatten(1).amax(-1))
        if not found:
            return torch.full((1,), math.inf)
        return torch.stack(torch.broadcast_tensors(*found)).amin(0) / scale

    return gaps
