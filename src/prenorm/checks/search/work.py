"""How much may be searched: counted from sizes, not measured, so that every machine gives the same verdict."""

from collections.abc import Iterator

from ..formula.spec import Weights

WHOLE = 8_000_000
"""What all searches for one verdict may take: about 7 seconds of a core of 2024."""
AT_ONCE = 1 / 2
"""The share of what is left that one search may take, so that those after it are never without any."""
LIKELIER = 2 / 3
"""The same of one attempt with all its searches; the likeliest way to read the parameters comes first."""
CALLS_OF_ONE_TOKEN, CALLS = 200, 500
"""What the calls of one evaluation take, however small the tensors are."""
PRODUCTS = 2500
"""Multiplications that take as long as a unit."""
LEAST_VECTORS = 3
"""Weights are read from memory for a few vectors as for one."""


class Work:
    """Work that is left, in units of about a microsecond. What a part spends is spent of the whole, too."""

    def __init__(self, most: int = WHOLE, whole: "Work | None" = None) -> None:
        self.left, self.whole = most, whole

    def part(self, share: float) -> "Work":
        """A share of what is left."""
        return Work(int(max(self.left, 0) * share), self)

    def shares(self, count: int) -> Iterator["Work"]:
        """Those of so many attempts, one after the other. What one of them leaves is for those that follow."""
        for remaining in range(count, 0, -1):
            yield self.part(LIKELIER if remaining > 1 else 1.0)

    def spend(self, units: int) -> bool:
        """Whether so much is left, which then is spent."""
        if self.left < units or (self.whole is not None and not self.whole.spend(units)):
            return False
        self.left -= units
        return True


def units(values: Weights, sequences: int, tokens: int) -> int:
    """What one evaluation of the reference takes, with all readings, for so many sequences of so many tokens."""
    products = sum(value.numel() for value in values.values()) * max(sequences * tokens, LEAST_VECTORS)
    return (CALLS_OF_ONE_TOKEN if tokens == 1 else CALLS) + products // PRODUCTS
