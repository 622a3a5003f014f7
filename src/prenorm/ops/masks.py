"""Which query may attend to which key, as boolean masks: True = may attend."""

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..kernels.visible import causal_mask as causal_mask
from ..validation import check_size


def check_window(window: int | None, *, causal: bool) -> None:
    """Raise ConfigError for a window that is not a positive integer, or without causal attention."""
    if window is None:
        return
    check_size("window", window)
    if not causal:
        raise ConfigError(
            f"window={window} counts places before the query, so it needs causal=True, but causal is False; "
            "pass causal=True, or a mask."
        )


def check_mask(mask: Tensor, scores_shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless `mask` is boolean with dims (q, kv) or exactly those of the scores."""
    if mask.dtype != torch.bool:
        raise ShapeError(f"mask must be boolean (True = may attend), but it is {mask.dtype}; mask.bool() makes it one.")
    if mask.ndim == 2 and tuple(mask.shape) == scores_shape[-2:]:
        return
    fits = mask.ndim == len(scores_shape) and mask.shape[-1] == scores_shape[-1]
    # Compared with ==: to torch.compile a size that varies is `in` no tuple.
    if fits and all(size == 1 or size == wanted for size, wanted in zip(mask.shape, scores_shape, strict=True)):
        return
    rule = f"mask must be (q, kv) = {scores_shape[-2:]} or have the dims of the scores {scores_shape}"
    if len(scores_shape) >= 3 and mask.ndim == len(scores_shape) - 1:
        raise ShapeError(
            f"{rule} (..., heads or 1, q or 1, kv), but it is {tuple(mask.shape)}: an axis is missing; "
            "if it is the heads axis, mask.unsqueeze(-3) adds it."
        )
    raise ShapeError(f"{rule} (..., heads or 1, q or 1, kv), but it is {tuple(mask.shape)}.")
