"""The loss on held-out text: every token is scored once, in overlapping windows that reread some earlier text."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from ..models.lm import TransformerLM
from ..ops.cross_entropy import IGNORED
from .batches import Batch
from .data.stream import TokenStream
from .device import Device


@torch.no_grad()
def heldout_loss(
    model: TransformerLM,
    batches: Iterable[Batch],
    device: Device,
    stopped: Callable[[], bool] = lambda: False,
    *,
    loss_of: Callable[[Batch], float] | None = None,
    sums: Callable[[float, float], Sequence[float]] = lambda *numbers: numbers,
) -> float | None:
    """The mean loss in nats over all tokens that the batches score. The model is left as it was.

    stopped: asked before every batch; once it is true there is no loss (None).
    loss_of: gives the mean loss of a batch, where the model does not by itself. sums: gives the sum of numbers over all
    processes that score text together; each of them has as many batches.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for batch in batches:
            if stopped():
                return None
            scored = int((batch.targets != IGNORED).sum())
            with device.autocast():
                loss = loss_of(batch) if loss_of else model.loss(**batch.to(device.device)._asdict())
            total, count = total + float(loss) * scored, count + scored
    finally:
        model.train(training)
    total, targets = sums(total, float(count))  # of processes that score the same rows, both are as often too large
    return total / targets


class Window(NamedTuple):
    """Part of a document as positions in a stream: read from `start` to `end`, scored from `scored` to `end`."""

    start: int
    scored: int
    end: int


class HeldOutBatches:
    """Held-out text as batches of one shape, in which every target of the stream is scored exactly once.

    Windows in which nothing is a target, such as those of a long question, are left out.

    share (i, n): these are the batches of the i-th of n processes, which all have as many, of `rows` rows each; the
    last ones may be nothing but padding. What `spread` takes follows from batch_size alone.

    A document longer than `context` is read in windows of that length, each with at least the share `overlap` of text
    that an earlier one has scored. Shorter documents share rows. What remains of a row is padding.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        batch_size: int,
        context: int,
        overlap: float,
        rows: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._stream, self._batch_size, self._context = stream, batch_size, context
        self._at_once, self._share = rows or batch_size, share
        stride = max(1, int(context * (1 - overlap)))
        bounds = pairwise(stream.starts.tolist())
        windows = [window for start, end in bounds for window in _windows(start, end, context, stride)]
        if len(stream.unscored):
            windows = [one for one in windows if stream.num_targets_in(one.scored + 1, one.end + 1)]
        self._rows = _packed(windows, context)

    def __len__(self) -> int:
        return self._turns(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        return (self._batch(self._rows, turn) for turn in range(len(self)))

    def spread(self, count: int) -> list[Batch]:
        """`count` evenly spaced batches, or all if there are fewer."""
        size = self._batch_size
        all_of_them = -(-len(self._rows) // size)
        count = min(count, all_of_them)
        starts = (number * all_of_them // count * size for number in range(count))
        rows = [row for start in starts for row in self._rows[start : start + size]]
        return [self._batch(rows, turn) for turn in range(self._turns(rows))]

    def _turns(self, rows: Sequence[list["Window"]]) -> int:
        """How many batches each process makes of these rows."""
        return -(-len(rows) // (self._at_once * self._share[1]))

    def _batch(self, rows: Sequence[list["Window"]], turn: int) -> Batch:
        shape = (self._at_once, self._context)
        token_ids, targets, segments = np.zeros(shape, np.int64), np.full(shape, IGNORED), np.full(shape, -1)
        first = (turn * self._share[1] + self._share[0]) * self._at_once
        for row, windows in enumerate(rows[first : first + self._at_once]):
            place = 0
            for number, (start, scored, end) in enumerate(windows):
                stop = place + end - start
                token_ids[row, place:stop] = self._stream.tokens[start:end]
                targets[row, stop - (end - scored) : stop] = self._stream.targets(np.arange(scored + 1, end + 1))
                segments[row, place:stop] = number
                place = stop
        return Batch(torch.from_numpy(token_ids), torch.from_numpy(targets), torch.from_numpy(segments))


def _windows(start: int, end: int, context: int, stride: int) -> Iterator[Window]:
    """The windows of the document from `start` to `end`."""
    stop = min(start + context, end)
    yield Window(start, start, stop)
    while stop < end:
        scored, stop = stop, min(stop + stride, end)
        yield Window(stop - context, scored, stop)


def _packed(windows: list[Window], context: int) -> list[list[Window]]:
    """Rows of windows, longest first; each window goes into the current row if it fits."""
    rows: list[list[Window]] = []
    room = 0
    for window in sorted(windows, key=lambda window: window.start - window.end):  # stable: text stays in order
        length = window.end - window.start
        if length > room:
            rows.append([])
            room = context
        rows[-1].append(window)
        room -= length
    return rows
