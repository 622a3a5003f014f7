"""Which numbers dropout drops: drawn from torch's generator or, within `dropout_key`, fixed by their place in a run.

With a key a mask is a function of seed, step, layer, site in the layer, row of the step's batch, and place in the row.
So it is the same however the rows are divided into micro-batches and the model over processes. On a CPU the bits are
those of NumPy's fastest generator, which is set to a hash of that place for every `STREAM` numbers of a row: a
generator that starts anew for each token would take longer to start than to draw. On other devices torch's generator
draws them, a row at a time.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ShapeError
from .plain import is_plain

LEVELS = 2**16  # p is taken to the nearest 1/65536, and kept numbers are scaled by just that share
STREAM = 2**18  # numbers of a row that are drawn from one start of the generator, which takes as long as some 6,000


@dataclass(frozen=True, slots=True)
class DropoutKey:
    """What masks follow from. Of several processes that share rows, each has a part of the sequence and of the heads.

    Parts are those of `torch.chunk`: equal, but for a shorter last one; heads are divided evenly.
    """

    seed: int
    step: int
    rows: tuple[int, ...]
    """The number, in the step's whole batch, of each row at hand."""
    seq: int
    """Tokens in a whole row."""
    part: int = 0
    """The number of this process's part, of so many ..."""
    parts: int = 1


class Site:
    """Where a pass is: its key, the layer, and how many masks the layer has had."""

    def __init__(self, key: DropoutKey, layer: int) -> None:
        self.key, self.layer, self.masks = key, layer, 0

    @contextmanager
    def again(self) -> Iterator[None]:
        """The layer from its beginning, as when it runs a second time for its gradients."""
        global _site
        before, _site = _site, Site(self.key, self.layer)
        try:
            yield
        finally:
            _site = before


_site: Site | None = None  # of the process: the backward pass of a GPU, which may run layers again, has other threads


@contextmanager
def dropout_key(key: DropoutKey) -> Iterator[None]:
    """Within it, masks follow from the key. Layers that run again for their gradients, later, still draw theirs."""
    with Site(key, -1).again():
        yield


def enter_layer(number: int) -> Site | None:
    """Say that the layer of this number comes next. Gives where that is; None without a key."""
    global _site
    if _site is not None:
        _site = Site(_site.key, number)
    return _site


def is_keyed() -> bool:
    """Whether masks follow from a key."""
    return _site is not None


def draw(x: Tensor, p: float, dims: int) -> tuple[Tensor, float]:
    """Which numbers of a tensor like x are dropped, and what the others are scaled by.

    dims: how many of the last dims are a row of the batch: 2 for (seq, features), 3 for (heads, q, kv).
    """
    level = min(round(p * LEVELS), LEVELS - 1)
    threshold = level - LEVELS // 2  # of 16 random bits, read as a signed integer
    keyed: Callable[..., Tensor] = _keyed if is_plain(x) else _keyed_op
    mask = _next if _site is None else keyed
    return mask(x, threshold, dims).view(x.shape), LEVELS / (LEVELS - level)


def _next(x: Tensor, threshold: int, _: int) -> Tensor:
    """A mask from a seed that torch's generator draws."""
    seed = int(torch.empty((), dtype=torch.int64, device=x.device).random_())
    bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)
    return torch.from_numpy(bits[: x.numel()] < threshold)  # in PyTorch this takes as long as the drawing


def _keyed(x: Tensor, threshold: int, dims: int) -> Tensor:
    """A mask of x's numbers, in order, from the key; the next one is another site's."""
    assert _site is not None
    key, numbers = _site.key, math.prod(x.shape[-dims:])
    _check_rows(x, key, dims)
    first = _first_position(x, key) * x.shape[-1] if dims == 2 else key.part * numbers
    site = f"{key.seed} {key.step} {_site.layer} {_site.masks}"
    _site.masks += 1
    draw_rows = _on_cpu if x.is_cpu else _on_device
    return draw_rows(x, [f"{site} {row}" for row in key.rows], first, numbers, threshold).view(x.shape)


def _on_cpu(_: Tensor, rows: list[str], first: int, numbers: int, threshold: int) -> Tensor:
    dropped = np.empty((len(rows), numbers), np.bool_)
    for row, into in zip(rows, dropped, strict=True):
        for start in range(first - first % STREAM, first + numbers, STREAM):
            begin, end = max(first, start), min(first + numbers, start + STREAM)
            _GENERATOR.state = _start(f"{row} {start // STREAM}")
            bits = _GENERATOR.random_raw(-(-(end - start) // 4)).view(np.int16)
            np.less(bits[begin - start : end - start], threshold, out=into[begin - first : end - first])
    return torch.from_numpy(dropped)


def _on_device(x: Tensor, rows: list[str], first: int, numbers: int, threshold: int) -> Tensor:
    dropped, generator = x.new_empty(len(rows), numbers, dtype=torch.bool), torch.Generator(x.device)
    for row, into in zip(rows, dropped, strict=True):
        generator.manual_seed(int.from_bytes(_hash(row)[:7], "little"))
        bits = x.new_empty(first + numbers, dtype=torch.int16).random_(-LEVELS // 2, LEVELS // 2, generator=generator)
        torch.lt(bits[first:], threshold, out=into)
    return dropped


_GENERATOR = np.random.SFC64(0)


def _start(place: str) -> Any:
    """A state of `_GENERATOR`. Its four words are a hash's, so that no rounds are needed to mix them."""
    words = np.frombuffer(_hash(place), np.uint64)
    return {"bit_generator": "SFC64", "state": {"state": words}, "has_uint32": 0, "uinteger": 0}


def _hash(place: str) -> bytes:
    return hashlib.blake2b(place.encode(), digest_size=32).digest()


def _first_position(x: Tensor, key: DropoutKey) -> int:
    """Where in the whole rows the sequence x (..., seq, features) begins."""
    chunk, seq = -(-key.seq // key.parts), x.shape[-2]
    mine = range(key.seq)[key.part * chunk : (key.part + 1) * chunk]
    if seq == key.seq:
        return 0
    if seq != len(mine):
        raise ShapeError(
            f"a dropout key must say how long rows are, but x, {tuple(x.shape)}, has {seq} tokens, and the key has "
            f"{key.seq}, of which part {key.part} of {key.parts} has {len(mine)}."
        )
    return key.part * chunk


def _check_rows(x: Tensor, key: DropoutKey, dims: int) -> None:
    if (rows := math.prod(x.shape[:-dims])) != len(key.rows):
        raise ShapeError(
            f"a dropout key must number every row of the batch, but it has {len(key.rows)} numbers and x, "
            f"{tuple(x.shape)}, has {rows} rows; give DropoutKey one number a row."
        )


# One node in compiled code: what it draws follows from where the pass is, which a trace cannot hold.
@torch.library.custom_op("prenorm::keyed_dropout", mutates_args=(), tags=torch.Tag.nondeterministic_seeded)
def _keyed_op(x: Tensor, threshold: int, dims: int) -> Tensor:
    return _keyed(x, threshold, dims)


@_keyed_op.register_fake
def _(x: Tensor, threshold: int, dims: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool, memory_format=torch.contiguous_format)
