"""The KV cache: keys and values of tokens already seen, owned by the caller and filled in place."""

from collections.abc import Sequence
from typing import overload

from jaxtyping import Int
from torch import Tensor

from ..errors import ShapeError
from .layer_cache import LayerCache
from .timeline import Arrival, Timeline


class KVCache(Sequence[LayerCache]):
    """One LayerCache for each layer of a model, with one timeline: cache[i] is what block i takes.

    A model's call counts its tokens in all layers. Blocks may also be called one by one, each with its cache[i]: the
    tokens then count once every layer has them.
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = tuple(layers)
        self.timeline = self.layers[0].timeline if self.layers else Timeline(0, 1)
        shapes = {(layer.timeline.batch_size, layer.max_seq_len) for layer in self.layers}
        if len(shapes) > 1:
            raise ShapeError(
                f"the layers of a cache must have one batch size and one max_seq_len, but have {sorted(shapes)}."
            )
        if [layer.timeline for layer in self.layers] == [self.timeline] * len(self.timeline.ahead):
            return  # they belong together already
        if any(layer.timeline.longest or any(layer.timeline.ahead) for layer in self.layers):
            raise ShapeError("a cache is made of layers that hold no tokens yet, but some do; reset them first.")
        self.timeline.ahead = [0] * len(self.layers)
        for index, layer in enumerate(self.layers):
            layer.timeline, layer.index = self.timeline, index

    @overload
    def __getitem__(self, index: int) -> LayerCache: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerCache]: ...
    def __getitem__(self, index: int | slice) -> LayerCache | Sequence[LayerCache]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        return self.timeline.lengths()

    @property
    def documents(self) -> Int[Tensor, " batch"]:
        """The segment id of each row's document, -1 where none is known yet."""
        return self.timeline.documents

    def check(self, num_layers: int) -> None:
        """Raise ShapeError for another number of layers, or for layers with different tokens."""
        self.timeline.check_whole()
        if len(self.layers) != num_layers:
            raise ShapeError(f"this cache has {len(self.layers)} layers, but the model has {num_layers}.")
        if self.layers and any(self.timeline.ahead):
            held = [layer.lengths.tolist() for layer in self.layers]
            raise ShapeError(
                f"the layers of a cache must hold the same tokens, but they hold {held}: some were used alone. "
                "cache.reset() and feed the tokens again."
            )

    def arrive(self, x: Tensor, segment_ids: Int[Tensor, "batch seq"] | None, *, exact: bool = False) -> Arrival:
        """The places of the next tokens, in all layers. See `Timeline.arrive`."""
        return self.timeline.arrive(x, segment_ids, layer=None, exact=exact)

    def rewind(self, counts: Int[Tensor, " batch"], *, longest: int | None = None) -> None:
        """Forget the newest counts[i] tokens of each row i, in all layers. See `LayerCache.rewind`."""
        self.check(len(self.layers))
        rings = [layer.max_rewind for layer in self.layers if layer.is_ring]
        self.timeline.rewind(counts, longest=longest, most=min(rings, default=None))

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.timeline.reset()
