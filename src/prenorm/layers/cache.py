"""The KV cache: keys and values of tokens already seen, owned by the caller and filled in place."""

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config import check_size
from ..errors import ConfigError, RangeError, ShapeError
from ..ops.documents import document_counts


class LayerCache:
    """One layer's keys and values, and how many tokens each row holds.

    Padding is never stored: a row's tokens lie at places 0, 1, 2, ... whatever padding stood between them.
    What is stored is a constant to autograd; the tokens of the current call get their gradients.
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        max_seq_len: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_size("max_seq_len", max_seq_len)
        # One place more than can be used: that is where padding is written, so that shapes stay static.
        shape = (batch_size, num_kv_heads, max_seq_len + 1, head_dim)
        with torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
            self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)  # tokens in each row
            self.documents = torch.full((batch_size,), -1, device=device)  # the segment id of each row, once known
        self.max_seq_len = max_seq_len
        self.longest = 0  # of lengths, known without asking the device
        self.calls = 0  # since the last reset
        self.ragged = False

    def places(self, seq: int, real: Bool[Tensor, "batch seq"] | None = None) -> Int[Tensor, "batch seq"]:
        """The places that `seq` further tokens will take in each row; -1 for padding (real = False)."""
        if real is None:
            return self.lengths[:, None] + torch.arange(seq, device=self.lengths.device)
        return torch.where(real, self.lengths[:, None] + real.cumsum(-1) - 1, -1)

    def check_document(self, segment_ids: Int[Tensor, "batch seq"]) -> None:
        """Raise ConfigError unless each row goes on with its one document, with padding only before or after it.

        Checked in eager mode on a CPU only: elsewhere it would wait for the device.
        """
        if torch.compiler.is_compiling() or segment_ids.device.type != "cpu" or 0 in segment_ids.shape:
            return
        new = segment_ids.amax(-1)
        other = (self.documents >= 0) & (new >= 0) & (new != self.documents)
        wrong = ((document_counts(segment_ids) > 1) | other).nonzero()
        if len(wrong):
            row = int(wrong[0])
            ids = sorted({*segment_ids[row].tolist(), int(self.documents[row])} - {-1})
            raise ConfigError(
                f"with a cache a row holds one document, without a gap, but row {row} has segment ids {ids[:5]}; "
                "use one cache for each document, or pack documents without a cache."
            )

    def keep_document(self, segment_ids: Int[Tensor, "batch seq"]) -> None:
        """Remember each row's document, so that the next call can be checked."""
        if segment_ids.shape[-1]:
            new = segment_ids.amax(-1)
            self.documents.copy_(torch.where(new >= 0, new, self.documents))

    def append(
        self,
        k: Float[Tensor, "batch heads seq head_dim"],
        v: Float[Tensor, "batch heads seq head_dim"],
        real: Bool[Tensor, "batch seq"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads kv_seq head_dim"], Float[Tensor, "batch heads kv_seq head_dim"]]:
        """Store the keys and values of the next tokens; gives those of all tokens so far, by place.

        Raises ShapeError for another batch size, heads or dtype, RangeError when there is no room.
        """
        self._check_fits(k)
        places = self.places(k.shape[2], real)
        longest = self.longest_after(k.shape[2], real)
        if longest > self.max_seq_len:
            raise RangeError(
                f"a cache holds at most max_seq_len = {self.max_seq_len} tokens, but {self.longest} are in it and "
                f"{longest - self.longest} more are to come; make_cache(max_seq_len={longest}) would do."
            )
        ragged = self.ragged or real is not None
        slots = places.where(places >= 0, self.max_seq_len) if ragged else None
        keys = _store(self.keys, k, slots, self.longest, longest)
        values = _store(self.values, v, slots, self.longest, longest)
        self.lengths += k.shape[2] if real is None else real.sum(-1)
        self.longest, self.ragged, self.calls = longest, ragged, self.calls + 1
        return keys, values

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.lengths.zero_()
        self.documents.fill_(-1)
        self.longest, self.ragged, self.calls = 0, False, 0

    def check_batch(self, batch_size: int) -> None:
        """Raise ShapeError unless the cache was made for this many rows."""
        if batch_size != len(self.lengths):
            raise ShapeError(
                f"this cache was made for batch size {len(self.lengths)}, but x has batch size {batch_size}; make a "
                "cache for this batch."
            )

    def longest_after(self, seq: int, real: Tensor | None) -> int:
        if real is None:
            return self.longest + seq
        return int((self.lengths + real.sum(-1)).max()) if real.numel() else self.longest

    def _check_fits(self, k: Tensor) -> None:
        batch_size, num_kv_heads, _, head_dim = self.keys.shape
        if (k.shape[0], k.shape[1], k.shape[3]) != (batch_size, num_kv_heads, head_dim):
            raise ShapeError(
                f"this cache was made for batch size {batch_size}, {num_kv_heads} key heads and head_dim {head_dim}, "
                f"but the keys are {tuple(k.shape)}; make a cache for this batch and model."
            )
        if k.dtype != self.keys.dtype:
            raise ShapeError(
                f"this cache holds {self.keys.dtype}, but the keys are {k.dtype}; make_cache(dtype={k.dtype}) would do."
            )


class KVCache(Sequence[LayerCache]):
    """One LayerCache for each layer of a model: cache[i] is what block i takes."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = tuple(layers)
        self.passes = 0  # that went through all layers to the end, since the last reset

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
        """Raise ShapeError for another number of layers, or when an error stopped a forward pass in the middle."""
        if len(self.layers) != num_layers:
            raise ShapeError(f"this cache has {len(self.layers)} layers, but the model has {num_layers}.")
        held = [layer.longest for layer in self.layers]
        if any(layer.calls != self.passes for layer in self.layers):
            raise ShapeError(
                f"the layers of a cache must hold the same tokens, but they hold {held}: a forward pass stopped in the "
                "middle. cache.reset() and feed the tokens again."
            )

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.passes = 0
        for layer in self.layers:
            layer.reset()


def _store(held: Tensor, new: Tensor, slots: Tensor | None, start: int, stop: int) -> Tensor:
    """Write `new` into `held`; gives the places before `stop`, with the gradient of `new` where one is wanted."""
    constant = new.detach()
    if slots is None:
        held[:, :, start:stop] = constant
        if not torch.is_grad_enabled():
            return held[:, :, :stop]
        return torch.cat((held[:, :, :start], new), dim=2)
    index = slots[:, None, :, None].expand(new.shape)
    held.scatter_(2, index, constant)
    if not torch.is_grad_enabled():
        return held[:, :, :stop]
    return held.clone().scatter(2, index, new)[:, :, :stop]
