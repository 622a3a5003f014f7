"""The part of a plan that concerns a cache: the positions of the tokens, and which cached keys they may attend to."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import ConfigError
from ..ops.masks import causal_mask, check_mask
from ..ops.position_checks import check_length, check_positions
from .layer_cache import LayerCache, Slots
from .timeline import Arrival


def cached_positions(arrival: Arrival, max_seq_len: int) -> Int[Tensor, "*batch seq"]:
    """The positions that tokens are rotated by: their positions in the cache. Raises RangeError beyond max_seq_len."""
    if arrival.before is None or arrival.stop <= max_seq_len:  # no position reaches `stop`
        check_length(arrival.stop, max_seq_len)
        return arrival.cache_positions if arrival.is_token is None else arrival.cache_positions.clamp_min(0)
    positions = arrival.cache_positions.clamp_min(0)  # padding has no position; its rotation is never used
    check_positions(positions, max_seq_len)
    return positions


def cached_mask(
    layer: LayerCache, arrival: Arrival, mask: Tensor | None, num_heads: int, causal: bool, window: int | None
) -> tuple[Tensor | None, bool, Slots]:
    """The mask over the keys that `layer.store` returns, whether it still has to be made causal, and the slots.

    Raises ConfigError for a cache with a shorter window than this attention, RangeError when the cache is full, and
    ShapeError for a mask of the wrong shape.
    """
    _check_cache(layer, causal, window)
    layer.timeline.check_room(arrival)
    if mask is not None:
        check_mask(mask, (arrival.batch_size, num_heads, arrival.seq, arrival.stop))
    slots, key_positions = layer.slots_for(arrival)
    # Compiled code treats the first chunk like any other, to avoid compiling twice.
    if arrival.start == 0 and arrival.before is None and not torch.compiler.is_compiling():
        return mask, True, slots
    kv_seq = slots.held + arrival.seq if slots.joined else slots.held
    allowed = _allowed(arrival, key_positions, kv_seq, window)
    if mask is not None and key_positions is not None:
        mask = columns_at(mask, key_positions)
    if mask is not None and allowed is not None:
        allowed = mask & allowed
    return mask if allowed is None else allowed, False, slots


def _allowed(arrival: Arrival, key_positions: Tensor | None, kv_seq: int, window: int | None) -> Tensor | None:
    """The causal and window mask by cache position: (q, kv), (batch, 1, q, kv), or None where nothing is masked."""
    positions = arrival.cache_positions
    if key_positions is None and arrival.before is None:
        # While compiling, the size is not compared with the window: that would cause a recompilation.
        all_seen = window is None or (not torch.compiler.is_compiling() and kv_seq <= window)
        if arrival.seq == 1 and all_seen:
            return None
        return causal_mask(arrival.seq, kv_seq, window=window, device=positions.device)
    if key_positions is None:  # the i-th key is at position i
        key_positions = torch.arange(kv_seq, device=positions.device)
        allowed = positions[..., :, None] >= key_positions
        allowed = allowed if window is None else allowed & (positions[..., :, None] - key_positions < window)
    else:
        allowed = position_mask(positions, key_positions, window=window)
    return allowed.unsqueeze(1) if allowed.ndim == 3 else allowed


def position_mask(
    positions: Int[Tensor, "*batch q_seq"],
    key_positions: Int[Tensor, "*key_batch kv_seq"],
    *,
    window: int | None = None,
) -> Bool[Tensor, "*any_batch q_seq kv_seq"]:
    """True where a key is at or before the query, by less than `window`. Negative key positions are not tokens."""
    behind = positions[..., :, None] - key_positions[..., None, :]
    allowed = (behind >= 0) & (key_positions >= 0)[..., None, :]
    return allowed if window is None else allowed & (behind < window)


def columns_at(
    mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"], key_positions: Int[Tensor, "*key_batch held"]
) -> Bool[Tensor, "*any_batch q_or_1 held"]:
    """The columns of a mask over cache positions at `key_positions`, (held,) or (batch, held)."""
    columns = key_positions.clamp_min(0)  # slots without a token are masked elsewhere
    if columns.ndim == 1:
        return mask[..., columns]
    mask = mask[None, None] if mask.ndim == 2 else mask
    return torch.take_along_dim(mask, columns[:, None, None, :], dim=-1)


def _check_cache(layer: LayerCache, causal: bool, window: int | None) -> None:
    if not causal:
        raise ConfigError(
            "a cache needs causal=True, because cached tokens cannot attend to later ones, but causal is False; pass "
            "causal=True, or leave the cache out."
        )
    if layer.is_ring and (window is None or window > (layer.window or 0)):
        raise ConfigError(
            f"a cache must hold at least the window of the attention, but it holds {layer.window} tokens and this "
            f"attention has window={window}; make a cache for this model."
        )
