"""Which query may attend to which key, as one boolean mask: True = may attend."""

import torch
from jaxtyping import Bool
from torch import Tensor


def causal_mask(
    q_seq: int, kv_seq: int, *, window: int | None = None, device: torch.device | None = None
) -> Bool[Tensor, "q_seq kv_seq"]:
    """True where the key is not after the query (nor `window` or more before it); queries are the last of the keys."""
    behind = torch.arange(kv_seq - q_seq, kv_seq, device=device)[:, None] - torch.arange(kv_seq, device=device)
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def visible(query: Tensor, key: Tensor, mask: Tensor | None, *, causal: bool, window: int | None) -> Tensor | None:
    """What mask, causal and window leave together, as one mask; None where every query sees every key."""
    if not causal or (query.shape[-2] == 1 and window is None):  # a single query is the last one: it sees every key
        return mask
    allowed = causal_mask(query.shape[-2], key.shape[-2], window=window, device=query.device)
    return allowed if mask is None else mask & allowed
