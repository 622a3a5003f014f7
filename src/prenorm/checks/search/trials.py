"""Tries specs of the reference and readings of the parameters on one call of the learner's block."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formula.parameters import Pieces, Raw, weights
from ..formula.reference import block
from ..formula.spec import Spec, Weights
from .switches import ROTATION, Switch
from .work import AT_ONCE, Work, units

Base = tuple[Spec, int]
"""A spec to start from, and the number of switches set so far."""
Match = tuple[Spec, int, list[int]]
"""A spec that explains the numbers, its number of switches, and the readings for which it does."""

ROUNDED_ANGLES = 100
"""How much larger errors may be where angles are rounded."""
UNKNOWN_EPS = 10
"""The same where eps shows, which is fitted once the rest is known."""
FIRST = 2
"""Sequences of a probe that are compared first: where they do not agree, the others need not be computed."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One call of the learner's block: its parameters, input and output."""

    raw: Raw
    x: Tensor
    y: Tensor
    tolerance: float

    @property
    def positions(self) -> Tensor:
        """0, 1, 2, ... for every sequence: (1, seq)."""
        return torch.arange(self.x.shape[-2])[None]


class Trials:
    """Searches that share their work. check_time raises when the time for them is over.

    cut_short: whether one ended before every design was tried.
    """

    def __init__(self, num_heads: int, check_time: Callable[[], None], work: Work) -> None:
        self.num_heads, self.check_time, self.work = num_heads, check_time, work
        self.cut_short = False

    def find(
        self,
        bases: Sequence[Base],
        switches: Sequence[Switch],
        readings: list[Pieces],
        probe: Probe,
        *,
        keep_going: int = 0,
        most: int | None = None,
        faulty: bool = False,
    ) -> list[Match]:
        """Every spec, with its readings, that explains the probe with the fewest switches.

        keep_going: up to this many switches, matches with more switches are returned too.
        most: the largest number of switches that are set together.
        faulty: whether the bases have a fault already, or were tried before.
        """
        groups: dict[frozenset[tuple[str, torch.Size]], list[int]] = {}
        for i, reading in enumerate(readings):
            shapes = frozenset((name, piece.read(probe.raw).shape) for name, piece in reading.items())
            groups.setdefault(shapes, []).append(i)
        stacked = [(indices, weights([readings[i] for i in indices], probe.raw)) for indices in groups.values()]
        found: list[Match] = []
        tried: set[Spec] = set()
        deepest = (1 if keep_going else 2) if most is None else most
        compared = _Compared(probe)
        once = sum(units(values, compared.first, probe.x.shape[-2]) for _, values in stacked)
        work = self.work.part(AT_ONCE)
        for count in range(deepest + 1):
            for combination in itertools.combinations(switches, count):
                if not _together(combination):
                    continue
                changes = {name: value for switch in combination for name, value in switch.items()}
                for base, cost in bases:
                    spec = dataclasses.replace(base, **changes)
                    if spec in tried:
                        continue
                    tried.add(spec)
                    self.check_time()
                    if not work.spend(once):
                        self.cut_short |= count == 0 and not faulty
                        return found
                    indices = self._matching(spec, stacked, compared)
                    if indices:
                        found.append((spec, cost + count, indices))
                if found and count == 2:
                    return found
            if found and count >= keep_going:
                break
        return sorted(found, key=lambda match: match[1])

    def _matching(self, spec: Spec, stacked: list[tuple[list[int], Weights]], compared: "_Compared") -> list[int]:
        matching: list[int] = []
        for indices, values in stacked:
            good = compared.with_spec(spec, values, self.num_heads).expand(len(indices))
            matching += [index for index, is_good in zip(indices, good.tolist(), strict=True) if is_good]
        return sorted(matching)


def _together(switches: Sequence[Switch]) -> bool:
    """Whether they change different fields, and do not hide each other's effect on the rotation."""
    names = [name for switch in switches for name in switch]
    turning = sum(any(name in ROTATION for name in switch) for switch in switches)
    return len(set(names)) == len(names) and (turning < 2 or "rope_on" in names)


def agrees(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> bool:
    """Whether two outputs agree up to rounding, with NaN in the same places."""
    return bool(_agreement(y, expected.to(y.dtype)[None], _allowed(y, x, tolerance))[0])


class _Compared:
    """A probe, with which outputs of specs are compared: its first sequences before the others, which cost more."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.allowed = _allowed(probe.y, probe.x, probe.tolerance)
        self.first = min(FIRST, len(probe.x)) if torch.isfinite(probe.y).all() else len(probe.x)

    def with_spec(self, spec: Spec, values: Weights, num_heads: int) -> Tensor:
        """Whether the output agrees with that of the spec, for each reading; one entry if none of them matters."""
        every = len(self.probe.x)
        counts = (every,) if spec.mixes_sequences else dict.fromkeys((self.first, every))
        good = torch.zeros(1, dtype=torch.bool)
        with torch.inference_mode():
            for count in counts:
                try:
                    expected = block(spec, values, self.probe.x[:count], self.probe.positions, num_heads)
                except RuntimeError:  # weights of these shapes cannot be cut in that way
                    return torch.zeros(1, dtype=torch.bool)
                good = _agreement(self.probe.y[:count], expected, self.allowed * _more(spec))
                if not good.any():
                    break
        return good


def _more(spec: Spec) -> int:
    """How much larger an error may be with this spec."""
    return ROUNDED_ANGLES if spec.loses_angles else UNKNOWN_EPS if spec.shows_eps else 1


def _allowed(y: Tensor, x: Tensor, tolerance: float) -> Tensor:
    """The largest error that is rounding, relative to the size of the numbers."""
    size = torch.where(torch.isfinite(y), y, 0).abs().max()
    return tolerance * size.clamp(min=x.abs().max() * 0.1)


def _agreement(y: Tensor, expected: Tensor, allowed: Tensor) -> Tensor:
    """Whether y agrees with each of the expected outputs (first axis)."""
    finite = torch.isfinite(y)
    if not finite.any():
        return torch.zeros(len(expected), dtype=torch.bool)
    same = (expected - y).abs() <= allowed
    if not finite.all():
        same |= (expected.isnan() & y.isnan()) | (expected == y)
    return same.flatten(1).all(-1)
