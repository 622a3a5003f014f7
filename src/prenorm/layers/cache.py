"""The KV cache: keys and values of past tokens, owned by the caller and updated in place."""

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
    """One LayerCache per layer of a model, with a shared timeline. cache[i] is passed to block i.

    A call of the model counts its tokens in all layers. Blocks may also be called one by one, each with its cache[i];
    the tokens then count once every layer has stored them.
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = tuple(layers)
        self._timeline = self.layers[0].timeline if self.layers else Timeline(0, 1)
        timelines = {id(layer.timeline): layer.timeline for layer in self.layers}
        if len(timelines) == 1 and len(self.layers) == len(set(map(id, self.layers))) == self._timeline.num_layers:
            return  # already the layers of one cache
        if len(timelines) < len(self.layers) or any(timeline.num_layers > 1 for timeline in timelines.values()):
            raise ShapeError(
                "a KVCache needs distinct layers that belong to no other cache, but one is repeated or already belongs "
                "to another; make_cache makes a new one."
            )
        held = {
            (one.batch_size, one.max_seq_len, *(one.lengths().tolist() + one.documents.tolist() if one.longest else ()))
            for one in timelines.values()
        }
        if len(held) > 1:
            raise ShapeError(
                "the layers of a cache must have the same batch size, max_seq_len and tokens, but have "
                f"{sorted(held)} (batch size, max_seq_len, then the token count and document of each row, if any)."
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
        """The shared timeline; it counts every token that all layers have stored."""
        if not self._timeline.running:
            settle(self.layers, self._timeline)
        return self._timeline

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        return self.timeline.lengths()

    @property
    def documents(self) -> Int[Tensor, " batch"]:
        """The segment id of each row's document, -1 where it is not known yet."""
        return self._timeline.documents

    def check(self, num_layers: int) -> None:
        """Raise ShapeError for another number of layers, layers with different tokens, or a cache that is torn."""
        if len(self.layers) != num_layers:
            raise ShapeError(f"this cache has {len(self.layers)} layers, but the model has {num_layers}.")
        self.timeline.check_whole()
        if any(layer.ahead for layer in self.layers):
            held = [layer.lengths.tolist() for layer in self.layers]
            raise ShapeError(
                f"the layers of a cache must hold the same tokens, but they hold {held}, because some layers were "
                "called without the others; call cache.reset() and feed the tokens again."
            )

    def arrive(self, x: Tensor, segment_ids: Int[Tensor, "batch seq"] | None, *, exact: bool = False) -> Arrival:
        """The cache positions of the next tokens, the same in all layers. See `Timeline.arrive`."""
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
    """Count the tokens that all of these layers have stored; `layers` must be all layers of the timeline.

    Raises ShapeError when padding differs between the layers.
    """
    done = min([layer.ahead for layer in layers]) if layers else 0
    if not done:
        return
    records = [layer.columns for layer in layers]
    columns = next((record[:, :done] for record in records if record is not None), None)
    if columns is not None and any(record is not records[0] for record in records) and ranges.host_readable(columns):
        every = torch.ones_like(columns)
        if not all(torch.equal(columns, every if record is None else record[:, :done]) for record in records):
            raise ShapeError(
                "the layers of a cache must be given the same tokens, but padding differs between them; call "
                "cache.reset() and feed the tokens again."
            )
    even = all(layer.ahead == done for layer in layers)
    timeline.count(done, columns, stop=timeline.arrived[0] if even else None)
    for layer in layers:
        layer.ahead -= done
        layer.columns = None if layer.columns is None or not layer.ahead else layer.columns[:, done:]


@no_type_check  # the type-checking wrapper of the tests would break torch.compile
@contextmanager
def one_pass(cache: LayerCache | KVCache | None) -> Iterator[None]:
    """Context manager around a forward pass: its tokens count when the whole pass succeeds, and not if it fails.

    Passes may be nested; the outermost one counts. Raises ShapeError if an earlier pass failed after overwriting tokens
    that are still needed. Other types of `cache` are ignored here and rejected elsewhere.
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
        if len(layers) == timeline.num_layers:  # otherwise they count once every layer has stored them
            settle(layers, timeline)
        for layer in layers:
            layer.overwritten = 0


def _take_back(layers: Sequence[LayerCache], before: list[tuple[int, Tensor | None, int]]) -> None:
    """Restore the state before a failed call, or mark the cache torn if a ring buffer lost tokens that it needs."""
    for layer, (ahead, columns, overwritten) in zip(layers, before, strict=True):
        layer.ahead, layer.columns = ahead, columns
        lost, layer.overwritten = layer.overwritten - overwritten, overwritten
        if lost:
            layer.timeline.torn = layer.timeline.torn or lost > layer.spare
            layer.timeline.take_back(layer.lengths, lost)
