"""FlexAttention (Dong et al., 2024, arXiv:2412.05496) as its formula: PyTorch's own has no gradient on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch


def flexible(notes: dict[str, str]) -> Callable[..., Any]:
    """What stands in for torch.nn.attention.flex_attention.flex_attention. notes: says so, once it is called."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        score_mod: Callable[..., Tensor] | None = None,
        block_mask: Any = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        kernel_options: Any = None,
        *,
        return_aux: Any = None,
    ) -> Any:
        """What PyTorch's gives: (batch, heads, queries, size of a value)."""
        notes["flex_attention"] = "there is no GPU here: its formula stands in for PyTorch's flex_attention"
        if enable_gqa:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        wide = torch.promote_types(query.dtype, torch.float32)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = (query.to(wide) @ key.to(wide).transpose(-1, -2)) * scale
        if score_mod is not None:
            places = [torch.arange(size, device=scores.device) for size in scores.shape]
            modified: Callable[..., Tensor] = score_mod
            for axis in range(4):  # as PyTorch does: key, query, head, batch, from the inside
                among = [None] * 4
                among[3 - axis] = 0  # type: ignore[call-overload]
                modified = torch.vmap(modified, in_dims=(0, *among))
            scores = modified(scores, *places)
        if block_mask is not None:
            scores = scores.masked_fill(~_allowed(block_mask, scores), -torch.inf)
        weights = scores.softmax(-1).nan_to_num(0.0) if block_mask is not None else scores.softmax(-1)
        y = (weights @ value.to(wide)).to(query.dtype)
        if return_aux is not None:
            return y, of_torch.AuxOutput(lse=scores.logsumexp(-1), max_scores=scores.amax(-1))
        return (y, scores.logsumexp(-1)) if return_lse else y

    return attend


def _allowed(block_mask: Any, scores: Tensor) -> Tensor:
    """Where a query may attend: (batch or 1, heads or 1, queries, keys)."""
    batch, heads = (None if size == 1 else size for size in block_mask.shape[:2])
    queries, keys = scores.shape[-2:]
    return of_torch.create_mask(block_mask.mask_mod, batch, heads, queries, keys, device=scores.device)
