"""Batches of training text: a function of the seed and the step alone, so that a resumed run needs no position."""

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

    def cut(self, context: int) -> "Batch":
        """The same tokens in more and shorter rows, of `context` tokens each."""
        return Batch(*(part.reshape(-1, context) for part in self))

    def split(self, rows: int) -> list["Batch"]:
        """The same rows in parts of `rows`."""
        return [Batch(*parts) for parts in zip(*(part.split(rows) for part in self), strict=True)]


class TrainingBatches:
    """Shuffled documents, laid end to end and cut into rows of `context` tokens, in shuffled order, anew each epoch.

    An epoch has every token once, but for the last of its documents, which do not fill a row. Rows are full, and what
    a row holds of one document sees nothing of the others.
    """

    def __init__(self, stream: TokenStream, *, batch_size: int, context: int, seed: int) -> None:
        self._stream, self._batch_size, self._context, self._seed = stream, batch_size, context, seed
        self.rows_per_epoch = stream.num_targets // context
        self._epoch = _Epoch.draw(stream, self.rows_per_epoch, seed, 0)

    def at(self, step: int) -> Batch:
        """The batch of step 1, 2, ..."""
        numbers = np.arange((step - 1) * self._batch_size, step * self._batch_size)
        epochs, rows = np.divmod(numbers, self.rows_per_epoch)
        parts = [self._rows(epoch, rows[epochs == epoch]) for epoch in np.unique(epochs).tolist()]
        return Batch(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))

    def _rows(self, epoch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._epoch.number != epoch:
            self._epoch = _Epoch.draw(self._stream, self.rows_per_epoch, self._seed, epoch)
        order = self._epoch
        places = order.row_order[rows, None] * self._context + np.arange(self._context)
        documents = np.searchsorted(order.ends, places, side="right")
        sources = order.sources[documents] + places
        tokens = self._stream.tokens
        segments = documents - documents[:, :1]
        return tokens[sources].astype(np.int64), tokens[sources + 1].astype(np.int64), segments


class _Epoch(NamedTuple):
    """The order of one epoch. Place p of it is in the first shuffled document whose end is after p."""

    number: int
    ends: np.ndarray
    sources: np.ndarray  # added to a place, the index into the stream
    row_order: np.ndarray

    @classmethod
    def draw(cls, stream: TokenStream, rows: int, seed: int, number: int) -> "_Epoch":
        random = np.random.default_rng([seed, number])
        documents = random.permutation(len(stream.starts) - 1)
        lengths = np.diff(stream.starts)[documents]
        ends = np.cumsum(lengths)
        return cls(number, ends, stream.starts[documents] - (ends - lengths), random.permutation(rows))
