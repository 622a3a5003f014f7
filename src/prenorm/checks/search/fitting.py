"""Numbers that a block may hold, such as its theta: fitted, since no list has them all."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..parameters import Pieces, weights
from ..reference import Spec, block
from .switches import Switch
from .trials import Base, Probe

MOST_READINGS = 12
MOST_PAIRS = 8  # in a head; one that has fewer takes the first
REFINED = 3  # specs whose number is refined, of those that come nearest
HALVINGS = 44  # of the interval, by the golden section: to some 1e-9 of it
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Fit:
    """A number of a spec: where the search for it begins, evenly on a logarithmic scale, and what another costs."""

    name: str
    lowest: float
    highest: float
    starts: int
    cost: int

    def set(self, spec: Spec, number: float) -> Spec:
        """The spec with this number."""
        every = self.name == "frequencies"  # of every pair the same
        changes: Switch = {self.name: (number,) * MOST_PAIRS if every else number}
        return dataclasses.replace(spec, **changes)

    def at(self, place: float) -> float:
        """The number at a place between 0 and starts - 1."""
        return float(self.lowest * (self.highest / self.lowest) ** (place / (self.starts - 1)))


THETA = Fit("theta", 2.0, 2.0**31, 60, 0)
USUAL_THETA = Fit("theta", 200.0, 5e7, 36, 0)  # none that a wrong exponent makes of 10,000
PAIR = Fit("frequencies", 1e-6, 7.0, 60, 0)
SOFTCAP = Fit("softcap", 0.5, 500.0, 20, 0)
FACTOR = Fit("factor", 2.0**-7, 2.0**7, 40, 1)
BRANCH = Fit("branch", 2.0**-7, 2.0**4, 40, 0)


def fitted(fit: Fit, bases: Sequence[Base], readings: list[Pieces], probe: Probe, num_heads: int) -> list[Base]:
    """Bases with the number under which they come nearest to the probe's output, the nearest first."""
    gap = _gaps(readings[:MOST_READINGS], probe, num_heads)
    coarse = []
    for spec, cost in bases:
        gaps = [gap(fit.set(spec, fit.at(place))) for place in map(float, range(fit.starts))]
        least = min(range(fit.starts), key=gaps.__getitem__)
        coarse.append((gaps[least], least, spec, cost))
    found = []
    for _, place, spec, cost in sorted(coarse, key=lambda one: one[0])[:REFINED]:
        number, near = _refined(functools.partial(_gap_at, fit, spec, gap), float(place))
        if near > 100 * probe.tolerance:
            continue
        value = fit.at(number)
        for digits in range(6):  # the roundest that comes as near
            rounded = float(f"{value:.{digits}e}")
            if gap(fit.set(spec, rounded)) <= max(2 * near, 0.02 * probe.tolerance):
                value = rounded
                break
        found.append((near, (fit.set(spec, value), cost + fit.cost)))
    return [base for _, base in sorted(found, key=lambda one: one[0])]


def _gap_at(fit: Fit, spec: Spec, gap: Callable[[Spec], float], place: float) -> float:
    return gap(fit.set(spec, fit.at(place)))


def _refined(gap: Callable[[float], float], place: float) -> tuple[float, float]:
    """The place of the least gap between its neighbours, and that gap."""
    low, high = place - 1.0, place + 1.0
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    gaps = [gap(inner[0]), gap(inner[1])]
    for _ in range(HALVINGS):
        if gaps[0] <= gaps[1]:
            high, inner, gaps = inner[1], [0.0, inner[0]], [0.0, gaps[0]]
            inner[0] = high - GOLDEN * (high - low)
            gaps[0] = gap(inner[0])
        else:
            low, inner, gaps = inner[0], [inner[1], 0.0], [gaps[1], 0.0]
            inner[1] = low + GOLDEN * (high - low)
            gaps[1] = gap(inner[1])
    return min(zip(inner, gaps, strict=True), key=lambda one: one[1])


def _gaps(readings: list[Pieces], probe: Probe, num_heads: int) -> Callable[[Spec], float]:
    """How far a spec is from the probe's output under the reading that fits best, as a share of the output's size."""
    groups: dict[frozenset[tuple[str, torch.Size]], list[Pieces]] = {}
    for reading in readings:
        shapes = frozenset((name, piece.read(probe.raw).shape) for name, piece in reading.items())
        groups.setdefault(shapes, []).append(reading)
    stacked = [weights(group, probe.raw) for group in groups.values()]
    scale = float(torch.where(torch.isfinite(probe.y), probe.y, 0).abs().max().clamp(min=1e-9))

    def gap(spec: Spec) -> float:
        least = math.inf
        with torch.no_grad():
            for values in stacked:
                try:
                    error = (block(spec, values, probe.x, probe.positions, num_heads) - probe.y).abs()
                except RuntimeError:  # weights of these shapes cannot be cut in that way
                    continue
                least = min(least, float(error.nan_to_num(math.inf).flatten(1).amax(-1).min()))
        return least / scale

    return gap
