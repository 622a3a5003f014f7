"""The cache of a decoder block: its own tokens, and the encoder output's keys and values, computed once."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .cache import KVCache
from .layer_cache import LayerCache


class DecoderLayerCache(LayerCache):
    """A LayerCache for the self-attention, plus the keys and values of the cross-attention.

    `reset` clears the tokens but keeps the encoder output.
    """

    def __init__(
        self,
        cross_keys: Float[Tensor, "batch heads kv_seq head_dim"],
        cross_values: Float[Tensor, "batch heads kv_seq head_dim"],
        max_seq_len: int,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        batch_size, num_heads, _, head_dim = cross_keys.shape
        super().__init__(
            batch_size, num_heads, max_seq_len, head_dim, dtype=dtype or cross_keys.dtype, device=cross_keys.device
        )
        self.cross_keys, self.cross_values = _usable_anywhere(cross_keys), _usable_anywhere(cross_values)


class DecoderCache(KVCache):
    """One DecoderLayerCache per block of a decoder, and the mask of padding in the encoder output."""

    def __init__(
        self, layers: list[DecoderLayerCache], cross_mask: Bool[Tensor, "batch 1 1 kv_seq"] | None = None
    ) -> None:
        super().__init__(layers)
        self.cross_mask = None if cross_mask is None else _usable_anywhere(cross_mask)


def _usable_anywhere(x: Tensor) -> Tensor:
    """x, or a copy if x was made under torch.inference_mode, so that the cache can be used outside it."""
    if not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()
