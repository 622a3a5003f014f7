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

Base = tuple[Spec, int]
"""A spec to start from, and the switches that it took so far."""
Match = tuple[Spec, int, list[int]]
"""A spec that gives the numbers, the switches that it took, and the readings under which it does."""

MOST_WORK = 80_000
"""Readings that are tried before it gives up: some 5 seconds, counted so that every machine gives the same verdict."""
LEAST_WORK = 16
"""What one reading by itself costs in these; one token costs half."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One call of the learner's block: with which parameters, on what, and what it gave."""

    raw: Raw
    x: Tensor
    y: Tensor
    tolerance: float

    @property
    def positions(self) -> Tensor:
        """0, 1, 2, ... for every sequence: (1, seq)."""
        return torch.arange(self.x.shape[-2])[None]


class Trials:
    """Counts the work of all searches in one block. check_time raises when the judgement's time is over."""

    def __init__(self, num_heads: int, check_time: Callable[[], None], most_work: int = MOST_WORK) -> None:
        self.num_heads, self.check_time, self.most_work = num_heads, check_time, most_work
        self.work = 0

    def find(
        self,
        bases: Sequence[Base],
        switches: Sequence[Switch],
        readings: list[Pieces],
        probe: Probe,
        *,
        keep_going: int = 0,
        most: int | None = None,
    ) -> list[Match]:
        """Every spec and its readings that give the probe's numbers, with the fewest switches turned.

        keep_going: up to this many switches, matches with more switches are given as well.
        most: the switches that are turned together, at most.
        """
        groups: dict[frozenset[tuple[str, torch.Size]], list[int]] = {}
        for i, reading in enumerate(readings):
            shapes = frozenset((name, piece.read(probe.raw).shape) for name, piece in reading.items())
            groups.setdefault(shapes, []).append(i)
        stacked = [(indices, weights([readings[i] for i in indices], probe.raw)) for indices in groups.values()]
        found: list[Match] = []
        tried: set[Spec] = set()
        work = sum(max(len(indices), LEAST_WORK) for indices, _ in stacked) // (2 if probe.x.shape[-2] == 1 else 1)
        deepest = (1 if keep_going else 2) if most is None else most
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
                    self.work += work
                    if self.work > self.most_work:
                        return found
                    indices = self._matching(spec, stacked, probe)
                    if indices:
                        found.append((spec, cost + count, indices))
                if found and count == 2:
                    return found
            if found and count >= keep_going:
                break
        return sorted(found, key=lambda match: match[1])

    def _matching(self, spec: Spec, stacked: list[tuple[list[int], Weights]], probe: Probe) -> list[int]:
        matching: list[int] = []
        with torch.no_grad():
            for indices, values in stacked:
                try:
                    expected = block(spec, values, probe.x, probe.positions, self.num_heads)
                except RuntimeError:  # weights of these shapes cannot be cut in that way
                    continue
                if expected.shape[0] != len(indices):
                    expected = expected.expand(len(indices), *expected.shape[1:])
                agreement = _agreement(probe.y, expected, probe.x, probe.tolerance)
                matching += [index for index, good in zip(indices, agreement.tolist(), strict=True) if good]
        return sorted(matching)


def _together(switches: Sequence[Switch]) -> bool:
    """Whether they change different fields, and not both the rotation in ways of which each hides the other."""
    names = [name for switch in switches for name in switch]
    turning = sum(any(name in ROTATION for name in switch) for switch in switches)
    return len(set(names)) == len(names) and (turning < 2 or "rope_on" in names)


def agrees(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> bool:
    """Whether two outputs are alike but for rounding, NaN in the same places included."""
    return bool(_agreement(y, expected.to(y.dtype)[None], x, tolerance)[0])


def _agreement(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> Tensor:
    """For each of the expected outputs (first axis), whether y is it. The scale is that of the numbers compared."""
    if not torch.isfinite(y).any():
        return torch.zeros(len(expected), dtype=torch.bool)
    scale = torch.where(torch.isfinite(y), y, 0).abs().max().clamp(min=x.abs().max() * 0.1)
    error = (expected - y).abs()
    same = (error <= tolerance * scale) | (expected.isnan() & y.isnan()) | (expected == y)
    return same.flatten(1).all(-1)
