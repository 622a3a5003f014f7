"""The KV cache: keys and values of tokens already seen, owned by the caller and filled in place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import no_type_check, overload

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ShapeError
from .layer_cache import LayerCache


class KVCache(Sequence[LayerCache]):
    """One LayerCache for each layer of a model: cache[i] is what block i takes."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = tuple(layers)

    @overload
    def __getitem__(self, index: int) -> LayerCache: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerCache]: ...
    def __getitem__(self, index: int | slice) -> LayerCache | Sequence[LayerCache]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerCache]:
        return iter(self.layers)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        return self.layers[0].lengths

    def check(self, num_layers: int) -> None:
        """Raise ShapeError for another number of layers, an error in the middle, or layers with different tokens."""
        if len(self.layers) != num_layers:
            raise ShapeError(f"this cache has {len(self.layers)} layers, but the model has {num_layers}.")
        for layer in self.layers:
            layer.check_whole()
        # Not compiled: torch's code generator loses a number that it learns to be equal to another one.
        if not torch.compiler.is_compiling() and not all(layer.agrees(self.layers[0]) for layer in self.layers[1:]):
            held = [layer.lengths.tolist() for layer in self.layers]
            raise ShapeError(
                f"the layers of a cache must hold the same tokens, but they hold {held}: some were used alone. "
                "cache.reset() and feed the tokens again."
            )

    def rewind(self, counts: Int[Tensor, " batch"], *, longest: int | None = None) -> None:
        """Forget the newest counts[i] tokens of each row i, in all layers. See `LayerCache.rewind`."""
        self.check(len(self.layers))
        self.layers[0].rewind(counts, longest=longest)
        for layer in self.layers[1:]:
            layer.follow(self.layers[0])

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        for layer in self.layers:
            layer.reset()

    def begin(self) -> None:
        """A forward pass begins. Raises ShapeError after one that an error stopped in the middle."""
        for layer in self.layers:
            layer.check_whole()
        for layer in self.layers:
            layer.begin()

    def end(self, *, well: bool) -> None:
        """The forward pass ends, well or with an error."""
        for layer in self.layers:
            layer.end(well=well)


@no_type_check  # in tests a wrapper around it would stop torch.compile, which knows generators alone
@contextmanager
def whole_call(cache: LayerCache | KVCache | None) -> Iterator[None]:
    """A `with` around all of a call that adds tokens to a cache, if there is one.

    An error in there after tokens were stored leaves the cache unusable until it is reset: fed again, they would be in
    it twice. Calls may lie one inside the other.
    """
    if not isinstance(cache, LayerCache | KVCache):  # what is no cache at all is refused elsewhere
        yield
        return
    cache.begin()
    well = False
    try:
        yield
        well = True
    finally:
        cache.end(well=well)
