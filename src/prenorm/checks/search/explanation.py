"""What the search finds: a spec and a reading that give the learner's numbers, or the step at which none does."""

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
    """A spec and a reading that give the learner's numbers, and how many switches it took.

    pairing_seen: whether the pairing is known; where one pair turns in each head, both give the same numbers.
    """

    spec: Spec
    reading: Pieces
    cost: int
    pairing_seen: bool = True

    def changed(self, **changes: Any) -> "Explanation":
        """With other values in some fields of the spec."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, **changes))

    def forward(
        self, raw: Raw, x: Tensor, positions: Tensor, num_heads: int, *, allowed: Tensor | None = None
    ) -> Tensor:
        """What the learner's block should give, were its faults only those of the spec."""
        return block(self.spec, weights([self.reading], raw), x, positions, num_heads, allowed=allowed)[0]


class UnexplainedError(Exception):
    """No spec gives the numbers. step: what was looked at; faults: what can be said all the same, id and evidence.

    unknown: parameters that were not recognised, because of their shape or because a weight is missing beside them.
    """

    def __init__(self, step: str, *, faults: Sequence[tuple[str, str]] = (), unknown: Sequence[str] = ()) -> None:
        super().__init__(step)
        self.step = step
        self.faults = tuple(faults)
        self.unknown = tuple(unknown)
