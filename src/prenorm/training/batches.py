"""Batches of training text, determined by seed and step alone, so that a resumed run needs no stored position."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .tokens import TokenStream


class Batch(NamedTuple):
    """Rows of text: targets[t] is the token after token_ids[t]; equal segment_ids are one document."""

    token_ids: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    segment_ids: Int[Tensor, "batch seq"]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def split(self, rows: int) -> list["Batch"]:
        """The batch split into parts of `rows` rows."""
        return [Batch(*parts) for parts in zip(*(part.split(rows) for part in self), strict=True)]


class TrainingBatches:
    """Shuffled documents, laid end to end and cut into rows of `context` tokens, in shuffled order, anew each epoch.

    In the first `short_steps` steps rows are cut further, into pieces of `short_context` tokens, and the pieces are
    shuffled as well: a step has the same number of tokens, from more places in the text.
    An epoch has every token once, but for the last of its documents, which do not fill a row. Rows are full, and what
    a row holds of one document sees nothing of the others.
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
    ) -> None:
        self._stream, self._batch_size, self._context, self._seed = stream, batch_size, context, seed
        self._short_steps = short_steps if short_context else 0
        self._pieces = context // short_context if short_context else 1
        self.rows_per_epoch = stream.num_targets // context
        self._epoch = self._draw(0)

    def at(self, step: int) -> Batch:
        """The batch of step 1, 2, ..."""
        pieces = self._pieces if step <= self._short_steps else 1
        numbers = np.arange((step - 1) * self._batch_size * pieces, step * self._batch_size * pieces)
        epochs, numbers = np.divmod(numbers, self.rows_per_epoch * pieces)
        parts = [self._rows(epoch, numbers[epochs == epoch], pieces) for epoch in np.unique(epochs).tolist()]
        return Batch(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))

    def _rows(self, epoch: int, numbers: np.ndarray, pieces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows, or the pieces of rows, that have these numbers in the order of an epoch."""
        if self._epoch.number != epoch:
            self._epoch = self._draw(epoch)
        order = self._epoch
        rows, piece = np.divmod(order.piece_order[numbers] if pieces > 1 else numbers, pieces)
        width = self._context // pieces
        places = (order.row_order[rows] * self._context + piece * width)[:, None] + np.arange(width)
        documents = np.searchsorted(order.ends, places, side="right")
        sources = order.sources[documents] + places
        tokens = self._stream.tokens
        segments = documents - documents[:, :1]
        return tokens[sources].astype(np.int64), tokens[sources + 1].astype(np.int64), segments

    def _draw(self, number: int) -> "_Epoch":
        random = np.random.default_rng([self._seed, number])
        documents = random.permutation(len(self._stream.starts) - 1)
        lengths = np.diff(self._stream.starts)[documents]
        ends = np.cumsum(lengths)
        row_order = random.permutation(self.rows_per_epoch)
        short_rows = min(max(0, self._short_steps * self._batch_size - number * len(row_order)), len(row_order))
        piece_order = random.permutation(short_rows * self._pieces)
        return _Epoch(number, ends, self._stream.starts[documents] - (ends - lengths), row_order, piece_order)


class _Epoch(NamedTuple):
    """The order of one epoch. Place p of it is in the first shuffled document whose end is after p."""

    number: int
    ends: np.ndarray
    sources: np.ndarray  # added to a position, gives the index into the stream
    row_order: np.ndarray
    piece_order: np.ndarray  # the order of the pieces of those rows that are read in short steps
