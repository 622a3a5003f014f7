"""What some seeds say about a number: its mean, a 95 % interval, and whether a claim about it holds."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

Numbers = Sequence[int | float]
Verdict = Literal["agrees", "disagrees", "cannot tell"]

# Student's t, two-sided 95 %, by how many numbers there are but one; more seeds than ten are rare here.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Interval(NamedTuple):
    """A mean over seeds, and the 95 % interval of it, which two seeds or more have."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if not math.isfinite(self.low):
            return f"{self.mean:.3g} ({self.seeds} seed{'' if self.seeds == 1 else 's'}, no interval)"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Numbers) -> Interval:
    """The mean and its interval by Student's t. A single value has an interval without ends, and NaN has none."""
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return Interval(math.nan, math.nan, math.nan, len(values))
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf, len(values))
    t = T_95[min(len(values) - 1, len(T_95)) - 1]
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


class Claim(NamedTuple):
    """What somebody says about a number: that it is from `low` to `high`."""

    text: str
    source: str
    low: float
    high: float

    @property
    def range(self) -> str:
        """The claim as a range: 'above 0', 'from -0.6 to -0.4'."""
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"below {self.high:g}" if math.isinf(self.low) else f"from {self.low:g} to {self.high:g}"


class Finding(NamedTuple):
    """A claim beside what was measured: None where no number came out, such as when all trainings failed."""

    claim: Claim
    measured: Interval | None

    @property
    def verdict(self) -> Verdict:
        """Agrees: the whole interval is in the claimed range. Disagrees: none of it is. Else nobody can tell."""
        claim, measured = self.claim, self.measured
        if measured is None or not all(map(math.isfinite, measured)):
            return "cannot tell"
        if claim.low <= measured.low and measured.high <= claim.high:
            return "agrees"
        return "disagrees" if measured.high < claim.low or claim.high < measured.low else "cannot tell"


def exponent(sizes: Numbers, values: Sequence[int | float | None]) -> float | None:
    """The b of the best fit value = a * size^b, least squares of the logarithms; None where it has no meaning."""
    points = [
        (math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True) if value and value > 0
    ]
    return slope(*zip(*points, strict=True)) if len(points) == len(values) > 1 else None


def slope(x: Numbers, y: Numbers) -> float:
    """The slope of the straight line through points with the least squared error."""
    return statistics.linear_regression(x, y).slope
