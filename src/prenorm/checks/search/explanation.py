"""The result of the search: a spec and a reading that explain the numbers, or the step that nothing explains."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..formula.parameters import Pieces, Raw, weights
from ..formula.reference import block
from ..formula.spec import Spec


@dataclass(frozen=True, slots=True)
class Explanation:
    """A spec and a reading that explain the learner's numbers, and the number of switches (cost).

    pairing_seen: whether the pairing is known; if only one pair per head is rotated, both give the same numbers.
    """

    spec: Spec
    reading: Pieces
    cost: int
    pairing_seen: bool = True

    def changed(self, **changes: Any) -> "Explanation":
        """The explanation with other values in some fields of the spec."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, **changes))

    def forward(
        self, raw: Raw, x: Tensor, positions: Tensor, num_heads: int, *, allowed: Tensor | None = None
    ) -> Tensor:
        """The output that the explanation predicts."""
        return block(self.spec, weights([self.reading], raw), x, positions, num_heads, allowed=allowed)[0]


class UnexplainedError(Exception):
    """No spec explains the numbers. step: where; faults: what is known nevertheless, id and evidence.

    unknown: parameters that were not recognised, because of their shape or because another weight is missing.
    lacking: the sublayer for which it has no parameters at all; empty if there may be both.
    so_far: the simplest explanations of the steps before, if there are any.
    complete: whether everything was tried; if not, there may be an explanation all the same.
    """

    def __init__(
        self, step: str, *, faults: Sequence[tuple[str, str]] = (), unknown: Sequence[str] = (), lacking: str = ""
    ) -> None:
        super().__init__(step)
        self.step = step
        self.lacking = lacking
        self.faults = tuple(faults)
        self.unknown = tuple(unknown)
        self.so_far: tuple[Explanation, ...] = ()
        self.complete = True


class OutOfTimeError(UnexplainedError):
    """The time for searching is over."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.complete = False
