"""What a plan says of a cache: where tokens stand, and who may attend to which of its keys."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import ConfigError
from ..ops.masks import causal_mask, check_mask
from ..ops.position_checks import check_length, check_positions
from .layer_cache import LayerCache, Slots
from .timeline import Arrival


def cached_positions(arrival: Arrival, max_seq_len: int) -> Int[Tensor, "*batch seq"]:
    """What tokens are rotated by: their places in the cache. Raises RangeError beyond max_seq_len."""
    if arrival.before is None or arrival.stop <= max_seq_len:  # no place is beyond `stop`
        check_length(arrival.stop, max_seq_len)
        return arrival.places if arrival.is_token is None else arrival.places.clamp_min(0)
    positions = arrival.places.clamp_min(0)  # padding has no place; where it is rotated to is never seen
    check_positions(positions, max_seq_len)
    return positions


def cached_mask(
    layer: LayerCache, arrival: Arrival, mask: Tensor | None, num_heads: int, causal: bool, window: int | None
) -> tuple[Tensor | None, bool, Slots]:
    """The mask over the keys that `layer.store` gives, whether it still has to be made causal, and the slots to store.

    Raises ConfigError for a cache that does not keep what this attention sees, RangeError when there is no room in it,
    ShapeError for a mask that does not fit.
    """
    _check_cache(layer, causal, window)
    layer.timeline.check_room(arrival)
    if mask is not None:
        check_mask(mask, (arrival.batch_size, num_heads, arrival.seq, arrival.stop))
    slots, key_places = layer.slots_for(arrival)
    # Compiled, the first chunk is as any other: it would be compiled twice.
    if arrival.start == 0 and arrival.before is None and not torch.compiler.is_compiling():
        return mask, True, slots
    kv_seq = slots.held + arrival.seq if slots.joined else slots.held
    allowed = _allowed(arrival, key_places, kv_seq, window)
    if mask is not None and key_places is not None:
        mask = columns_at(mask, key_places)
    if mask is not None and allowed is not None:
        allowed = mask & allowed
    return mask if allowed is None else allowed, False, slots


def _allowed(arrival: Arrival, key_places: Tensor | None, kv_seq: int, window: int | None) -> Tensor | None:
    """Who may attend to whom by place: (q, kv), (batch, 1, q, kv), or None where all may."""
    places = arrival.places
    if key_places is None and arrival.before is None:
        # The size is not compared with the window while compiling: the code would have to be compiled again.
        all_seen = window is None or (not torch.compiler.is_compiling() and kv_seq <= window)
        if arrival.seq == 1 and all_seen:
            return None
        return causal_mask(arrival.seq, kv_seq, window=window, device=places.device)
    if key_places is None:  # the i-th key is at place i
        key_places = torch.arange(kv_seq, device=places.device)
        allowed = places[..., :, None] >= key_places
        allowed = allowed if window is None else allowed & (places[..., :, None] - key_places < window)
    else:
        allowed = place_mask(places, key_places, window=window)
    return allowed.unsqueeze(1) if allowed.ndim == 3 else allowed


def place_mask(
    places: Int[Tensor, "*batch q_seq"], key_places: Int[Tensor, "*key_batch kv_seq"], *, window: int | None = None
) -> Bool[Tensor, "*any_batch q_seq kv_seq"]:
    """True where a key's place is at most the query's, and less than `window` before it; a negative one is no token."""
    behind = places[..., :, None] - key_places[..., None, :]
    allowed = (behind >= 0) & (key_places >= 0)[..., None, :]
    return allowed if window is None else allowed & (behind < window)


def columns_at(
    mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"], key_places: Int[Tensor, "*key_batch held"]
) -> Bool[Tensor, "*any_batch q_or_1 held"]:
    """A mask over places as one over keys that lie at `key_places` (held,) or (batch, held)."""
    columns = key_places.clamp_min(0)  # what is no token is masked elsewhere
    if columns.ndim == 1:
        return mask[..., columns]
    mask = mask[None, None] if mask.ndim == 2 else mask
    return torch.take_along_dim(mask, columns[:, None, None, :], dim=-1)


def _check_cache(layer: LayerCache, causal: bool, window: int | None) -> None:
    if not causal:
        raise ConfigError(
            "a cache needs causal=True: without it, tokens already cached would have to see those to come."
        )
    if layer.is_ring and (window is None or window > (layer.window or 0)):
        raise ConfigError(
            f"this cache remembers a window of {layer.window} places, but this attention has window={window}; "
            "make a cache for this model."
        )
