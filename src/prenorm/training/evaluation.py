"""The loss on held-out text: every token is scored once, in overlapping windows that reread some earlier text."""

from collections.abc import Callable, Iterable, Iterator
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
    model: TransformerLM, batches: Iterable[Batch], device: Device, stopped: Callable[[], bool] = lambda: False
) -> float | None:
    """The mean loss in nats over all tokens that the batches score. The model is left as it was.

    stopped: asked before every batch; once it is true there is no loss (None).
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
                loss = model.loss(**batch.to(device.device)._asdict())
            total, count = total + float(loss) * scored, count + scored
    finally:
        model.train(training)
    return total / count


class Window(NamedTuple):
    """Part of a document as positions in a stream: read from `start` to `end`, scored from `scored` to `end`."""

    start: int
    scored: int
    end: int


class HeldOutBatches:
    """Held-out text as batches of one shape, in which every target of the stream is scored exactly once.

    Windows in which nothing is a target, such as those of a long question, are left out.

    A document longer than `context` is read in windows of that length, each with at least the share `overlap` of text
    that an earlier one has scored. Shorter documents share rows. What remains of a row is padding.
    """

    def __init__(self, stream: TokenStream, *, batch_size: int, context: int, overlap: float) -> None:
        self._stream, self._batch_size, self._context = stream, batch_size, context
        stride = max(1, int(context * (1 - overlap)))
        bounds = pairwise(stream.starts.tolist())
        windows = [window for start, end in bounds for window in _windows(start, end, context, stride)]
        if len(stream.unscored):
            windows = [one for one in windows if stream.num_targets_in(one.scored + 1, one.end + 1)]
        self._rows = _packed(windows, context)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        shape = (self._batch_size, self._context)
        token_ids, targets, segments = np.zeros(shape, np.int64), np.full(shape, IGNORED), np.full(shape, -1)
        for row, windows in enumerate(self._rows[index * self._batch_size : (index + 1) * self._batch_size]):
            place = 0
            for number, (start, scored, end) in enumerate(windows):
                stop = place + end - start
                token_ids[row, place:stop] = self._stream.tokens[start:end]
                targets[row, stop - (end - scored) : stop] = self._stream.targets(np.arange(scored + 1, end + 1))
                segments[row, place:stop] = number
                place = stop
        return Batch(torch.from_numpy(token_ids), torch.from_numpy(targets), torch.from_numpy(segments))

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def spread(self, count: int) -> list[Batch]:
        """`count` evenly spaced batches, or all if there are fewer."""
        count = min(count, len(self))
        return [self[index * len(self) // count] for index in range(count)]


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
