"""The KV cache: keys and values of tokens already seen, owned by the caller and filled in place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import no_type_check, overload

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ShapeError
from ..ops import ranges
from .layer_cache import LayerCache
from .timeline import Arrival, Timeline


class KVCache(Sequence[LayerCache]):
    """One LayerCache for each layer of a model, with one timeline: cache[i] is what block i takes.

    A model's call counts its tokens in all layers. Blocks may also be called one by one, each with its cache[i]: the
    tokens then count once every layer has them.
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = tuple(layers)
        self._timeline = self.layers[0].timeline if self.layers else Timeline(0, 1)
        timelines = {id(layer.timeline): layer.timeline for layer in self.layers}
        if len(timelines) == 1 and len(self.layers) == len(set(map(id, self.layers))) == self._timeline.num_layers:
            return  # they belong together already
        if len(timelines) < len(self.layers) or any(timeline.num_layers > 1 for timeline in timelines.values()):
            raise ShapeError("a cache is made of layers that belong to no other cache, each of them once.")
        held = {
            (one.batch_size, one.max_seq_len, *(one.lengths().tolist() + one.documents.tolist() if one.longest else ()))
            for one in timelines.values()
        }
        if len(held) > 1:
            raise ShapeError(
                "the layers of a cache must have one batch size, one max_seq_len and the same tokens, but have "
                f"{sorted(held)} (batch size, max_seq_len, tokens and document of each row, if any)."
            )
        self._timeline.num_layers = max(1, len(self.layers))
        for layer in self.layers:
            layer.timeline = self._timeline

    @overload
    def __getitem__(self, index: int) -> LayerCache: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerCache]: ...
    def __getitem__(self, index: int | slice) -> LayerCache | Sequence[LayerCache]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def timeline(self) -> Timeline:
        """What is known of the rows, with all tokens counted that every layer has."""
        if not self._timeline.running:
            settle(self.layers, self._timeline)
        return self._timeline

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        return self.timeline.lengths()

    @property
    def documents(self) -> Int[Tensor, " batch"]:
        """The segment id of each row's document, -1 where none is known yet."""
        return self._timeline.documents

    def check(self, num_layers: int) -> None:
        """Raise ShapeError for another number of layers, layers with different tokens, or after a call that failed."""
        if len(self.layers) != num_layers:
            raise ShapeError(f"this cache has {len(self.layers)} layers, but the model has {num_layers}.")
        self.timeline.check_whole()
        if any(layer.ahead for layer in self.layers):
            held = [layer.lengths.tolist() for layer in self.layers]
            raise ShapeError(
                f"the layers of a cache must hold the same tokens, but they hold {held}: some were used alone. "
                "cache.reset() and feed the tokens again."
            )

    def arrive(self, x: Tensor, segment_ids: Int[Tensor, "batch seq"] | None, *, exact: bool = False) -> Arrival:
        """The places of the next tokens, in all layers. See `Timeline.arrive`."""
        return self.timeline.arrive(x, segment_ids, exact=exact)

    def rewind(self, counts: Int[Tensor, " batch"], *, longest: int | None = None) -> None:
        """Forget the newest counts[i] tokens of each row i, in all layers. See `LayerCache.rewind`."""
        self.check(len(self.layers))
        rings = [layer.max_rewind for layer in self.layers if layer.is_ring]
        self.timeline.rewind(counts, longest=longest, most=min(rings, default=None))

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self._timeline.reset()
        for layer in self.layers:
            layer.ahead, layer.columns, layer.overwritten = 0, None, 0


def settle(layers: Sequence[LayerCache], timeline: Timeline) -> None:
    """Count the tokens that all of these layers have, which are all that the timeline has. Raises ShapeError."""
    done = min([layer.ahead for layer in layers]) if layers else 0
    if not done:
        return
    records = [layer.columns for layer in layers]
    columns = next((record[:, :done] for record in records if record is not None), None)
    if columns is not None and any(record is not records[0] for record in records) and ranges.at_hand(columns):
        every = torch.ones_like(columns)
        if not all(torch.equal(columns, every if record is None else record[:, :done]) for record in records):
            raise ShapeError(
                "the layers of a cache must be given the same tokens, but padding differs between them; "
                "cache.reset() and feed the tokens again."
            )
    even = all(layer.ahead == done for layer in layers)
    timeline.count(done, columns, stop=timeline.arrived[0] if even else None)
    for layer in layers:
        layer.ahead -= done
        layer.columns = None if layer.columns is None or not layer.ahead else layer.columns[:, done:]


@no_type_check  # in tests a wrapper around it would stop torch.compile
@contextmanager
def one_pass(cache: LayerCache | KVCache | None) -> Iterator[None]:
    """A `with` around a forward pass: its tokens count when all of it is done, and none of them when it fails.

    Passes may lie one inside the other: the outermost counts. Raises ShapeError after one that failed when it had
    overwritten tokens that are still needed. What is no cache is refused elsewhere.
    """
    if not isinstance(cache, LayerCache | KVCache):
        yield
        return
    timeline = cache.timeline
    timeline.check_whole()
    layers = (cache,) if isinstance(cache, LayerCache) else cache.layers
    outer, before = timeline.running, [(layer.ahead, layer.columns, layer.overwritten) for layer in layers]
    timeline.running = True
    try:
        yield
    except BaseException:
        _take_back(layers, before)
        raise
    finally:
        timeline.running = outer
    if not outer:
        timeline.keep_documents()
        if len(layers) == timeline.num_layers:  # otherwise once every layer has them
            settle(layers, timeline)
        for layer in layers:
            layer.overwritten = 0


def _take_back(layers: Sequence[LayerCache], before: list[tuple[int, Tensor | None, int]]) -> None:
    """Be as before a call that failed, or torn where a ring has lost what is still needed."""
    for layer, (ahead, columns, overwritten) in zip(layers, before, strict=True):
        layer.ahead, layer.columns = ahead, columns
        lost, layer.overwritten = layer.overwritten - overwritten, overwritten
        if lost:
            layer.timeline.torn = layer.timeline.torn or lost > layer.spare
            layer.timeline.take_back(layer.lengths, lost)
