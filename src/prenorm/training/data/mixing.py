"""Sources that take turns by their weights: which one the n-th row is from, for any n, by a formula."""

from collections.abc import Sequence

import numpy as np

from ...errors import DataError

ROUND = 1 << 16  # rows after which the turns begin again: shares are rounded to whole rows of it


class Mixing:
    """Turns as even as they can be: after any number of rows, each source has had its share but for a row or so.

    In a round the k-th of a source's n rows stands at (k + 1/2) / n of the way. Raises DataError for a share of less
    than a row in a round.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        shares = np.array(weights, np.float64) / np.max(weights)
        rows = np.round(shares / shares.sum() * ROUND).astype(np.int64) if len(weights) > 1 else np.ones(1, np.int64)
        if (rows == 0).any():
            raise DataError(
                f"no weight may be less than 1/{ROUND} of their sum: {list(weights)}; leave that source out."
            )
        when = np.concatenate([(np.arange(count) + 0.5) / count for count in rows])
        sources = np.repeat(np.arange(len(rows)), rows)[np.argsort(when, kind="stable")]
        self._rows, self._sources = rows, sources
        self._earlier = np.empty(len(sources), np.int64)  # rows of the same source before this one in the round
        for source, count in enumerate(rows):
            self._earlier[sources == source] = np.arange(count)

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For rows of these numbers: their sources, and their numbers among the rows of the same source."""
        rounds, places = np.divmod(numbers, len(self._sources))
        sources = self._sources[places]
        return sources, rounds * self._rows[sources] + self._earlier[places]

    def counts(self, num_rows: int) -> np.ndarray:
        """How many of the first rows are of each source."""
        rounds, rest = divmod(num_rows, len(self._sources))
        return rounds * self._rows + np.bincount(self._sources[:rest], minlength=len(self._rows))
