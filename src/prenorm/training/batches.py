"""Batches of training text, determined by seed and step alone, so that a resumed run needs no stored position."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..ops.cross_entropy import IGNORED
from .data.mixing import Mixing
from .data.stream import Origin, TokenStream

# Up to so many documents are shuffled one by one. More are shuffled in runs of neighbours, so that their order takes no
# more memory: some 250 MB.
MOST_SHUFFLED = 1 << 22


class Batch(NamedTuple):
    """Rows of text: targets[t] is the token after token_ids[t], or IGNORED; equal segment_ids are one document."""

    token_ids: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    segment_ids: Int[Tensor, "batch seq"]

    @property
    def num_targets(self) -> int:
        """How many of the targets count."""
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def split(self, rows: int) -> list["Batch"]:
        """The batch split into parts of `rows` rows."""
        return [Batch(*parts) for parts in zip(*(part.split(rows) for part in self), strict=True)]


class TrainingBatches:
    """Rows of `context` tokens, in the same order for the same seed. Where the stream is a mixture of sources, each row
    is from one of them, and they take turns by their weights.

    In the first `short_steps` steps rows are cut further, into pieces of `short_context` tokens, and the pieces are
    shuffled as well: a step has the same number of tokens, from more places in the text.
    Rows are full, and what a row holds of one document sees nothing of the others.

    share (i, n): the rows of each batch that `at` gives are the i-th of n equal parts of neighbours.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        batch_size: int,
        context: int,
        seed: int,
        short_context: int = 0,
        short_steps: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._batch_size, self._share = batch_size, share
        self._pieces = context // short_context if short_context else 1
        self._short_steps = short_steps if short_context else 0
        sources = stream.mixture or ((stream, 1.0),)
        self._mixing = Mixing([weight for _, weight in sources])
        short_rows = self._mixing.counts(self._short_steps * batch_size)
        self._rows = [
            _Rows(source, context, [seed, number] if number else [seed], self._pieces, int(short_rows[number]))
            for number, (source, _) in enumerate(sources)
        ]

    @property
    def rows_per_epoch(self) -> int:
        """How many rows there are, in all sources, before one comes again."""
        return sum(rows.per_epoch for rows in self._rows)

    def at(self, step: int) -> Batch:
        """This share of the batch of step 1, 2, ..."""
        index, count = self._share
        return self._rows_at(step, index, count)

    def whole(self, step: int) -> Batch:
        """The batch of all shares."""
        return self._rows_at(step, 0, 1)

    def _rows_at(self, step: int, index: int, count: int) -> Batch:
        sources, numbers, pieces = self._numbers(step)
        size = len(numbers) // count
        mine = slice(index * size, (index + 1) * size)
        sources, numbers = sources[mine], numbers[mine]
        parts = [rows.take(numbers[sources == source], pieces) for source, rows in enumerate(self._rows)]
        order = np.argsort(np.argsort(sources, kind="stable"), kind="stable")
        return Batch(*(torch.from_numpy(np.concatenate(column)[order]) for column in zip(*parts, strict=True)))

    def documents(self, step: int, row: int) -> list[Origin]:
        """The documents that a row of the batch of a step is from, in order: file, line or row, number of tokens.

        It reads no tokens, so that it can be asked about a batch that cannot be read."""
        sources, numbers, pieces = self._numbers(step)
        return self._rows[int(sources[row])].documents(int(numbers[row]), pieces)

    def _numbers(self, step: int) -> tuple[np.ndarray, np.ndarray, int]:
        """For each row of a batch its source and its number within it; and how many pieces a whole row is cut into."""
        pieces = self._pieces if step <= self._short_steps else 1
        sources, numbers = self._mixing.at(np.arange((step - 1) * self._batch_size, step * self._batch_size))
        numbers = (numbers[:, None] * pieces + np.arange(pieces)).ravel()
        return np.repeat(sources, pieces), numbers, pieces


class _Rows:
    """Shuffled documents, laid end to end and cut into rows of `context` tokens, in shuffled order, anew each epoch.

    An epoch has every token once, but for the last of its documents, which do not fill a row. Where there is less text
    than a row, an epoch has it several times.
    """

    def __init__(self, stream: TokenStream, context: int, seed: Sequence[int], pieces: int, short_rows: int) -> None:
        self._stream, self._context, self._seed, self._pieces = stream, context, list(seed), pieces
        self._short_rows = short_rows
        self._copies = -(-context // stream.num_tokens)
        self.per_epoch = self._copies * stream.num_tokens // context
        self._epoch = self._draw(0)

    def take(self, numbers: np.ndarray, pieces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows, or the pieces of rows, of these numbers: their tokens, targets and segments."""
        places, units = self._places(numbers, pieces)
        documents = self._stream.documents(places)
        begins = (units[:, 1:] != units[:, :-1]) | (documents[:, 1:] != documents[:, :-1])
        segments = np.pad(np.cumsum(begins, axis=1), ((0, 0), (1, 0)))
        return self._stream.tokens[places].astype(np.int64), self._stream.targets(places + 1), segments

    def documents(self, number: int, pieces: int) -> list[Origin]:
        """The documents that a row is from."""
        places, _ = self._places(np.array([number]), pieces)
        return self._stream.origins(places[0])

    def _places(self, numbers: np.ndarray, pieces: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of rows are in the stream, and in which of the runs that were shuffled."""
        epochs, numbers = np.divmod(numbers, self.per_epoch * pieces)
        width = self._context // pieces
        places = np.empty((len(numbers), width), np.int64)
        units = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            if self._epoch.number != epoch:
                self._epoch = self._draw(epoch)
            order, here = self._epoch, epochs == epoch
            rows, piece = np.divmod(order.piece_order[numbers[here]] if pieces > 1 else numbers[here], pieces)
            laid = (order.row_order[rows] * self._context + piece * width)[:, None] + np.arange(width)
            units[here] = np.searchsorted(order.ends, laid, side="right")
            places[here] = order.sources[units[here]] + laid
        return places, units

    def _draw(self, number: int) -> "_Epoch":
        random = np.random.default_rng([*self._seed[:1], number, *self._seed[1:]])
        starts, neighbours = self._stream.starts, -(-(len(self._stream.starts) - 1) // MOST_SHUFFLED)
        starts = np.append(starts[:-1:neighbours], starts[-1])
        units = np.concatenate([random.permutation(len(starts) - 1) for _ in range(self._copies)])
        lengths = np.diff(starts)[units]
        ends = np.cumsum(lengths)
        row_order = random.permutation(self.per_epoch)
        short_rows = min(max(0, self._short_rows - number * self.per_epoch), self.per_epoch)
        piece_order = random.permutation(short_rows * self._pieces)
        return _Epoch(number, ends, starts[units] - (ends - lengths), row_order, piece_order)


class _Epoch(NamedTuple):
    """The order of one epoch. Place p of it is in the first of the shuffled runs whose end is after p."""

    number: int
    ends: np.ndarray
    sources: np.ndarray  # added to a position, gives the index into the stream
    row_order: np.ndarray
    piece_order: np.ndarray  # the order of the pieces of those rows that are read in short steps
