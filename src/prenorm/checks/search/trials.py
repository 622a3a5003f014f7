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
"""A spec to start from, and the number of switches set so far."""
Match = tuple[Spec, int, list[int]]
"""A spec that explains the numbers, its number of switches, and the readings for which it does."""

MOST_WORK = 80_000
"""Readings that are tried before giving up: about 5 seconds, counted so that all machines give the same verdict."""
LEAST_WORK = 16
"""The cost of trying a single reading, in this unit; with one token it is half."""


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
    """Searches, with a limit of work for each block. check_time raises when the time for it is over."""

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
        """Every spec, with its readings, that explains the probe with the fewest switches.

        keep_going: up to this many switches, matches with more switches are returned too.
        most: the largest number of switches that are set together.
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
    """Whether they change different fields, and do not hide each other's effect on the rotation."""
    names = [name for switch in switches for name in switch]
    turning = sum(any(name in ROTATION for name in switch) for switch in switches)
    return len(set(names)) == len(names) and (turning < 2 or "rope_on" in names)


def agrees(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> bool:
    """Whether two outputs agree up to rounding, with NaN in the same places."""
    return bool(_agreement(y, expected.to(y.dtype)[None], x, tolerance)[0])


def _agreement(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> Tensor:
    """Whether y agrees with each of the expected outputs (first axis), relative to the size of the numbers."""
    if not torch.isfinite(y).any():
        return torch.zeros(len(expected), dtype=torch.bool)
    scale = torch.where(torch.isfinite(y), y, 0).abs().max().clamp(min=x.abs().max() * 0.1)
    error = (expected - y).abs()
    same = (error <= tolerance * scale) | (expected.isnan() & y.isnan()) | (expected == y)
    return same.flatten(1).all(-1)
