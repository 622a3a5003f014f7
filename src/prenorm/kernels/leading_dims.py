"""Any leading dims in, exactly (batch, heads, seq, head_dim) for the kernel, and back."""

import math

from torch import Tensor


def four_dims(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The same tensors with the leading dims in one; a mask of two dims stays as it is."""
    if query.ndim == 4:
        return query, key, value, mask
    if mask is not None and mask.ndim > 2:
        mask = _reshape(mask.expand(*query.shape[:-3], *mask.shape[-3:]))
    return _reshape(query), _reshape(key), _reshape(value), mask


def _reshape(x: Tensor) -> Tensor:
    *batch, heads, seq, features = (1, 1, *x.shape)[-max(4, x.ndim) :]
    return x.reshape(math.prod(batch), heads, seq, features)
