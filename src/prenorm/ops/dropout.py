"""Dropout."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels.dropout_masks import draw, is_keyed
from ..private_torch import is_transformed
from ..validation import check_dropout
from . import backends


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Zero each number with probability p, 0 <= p < 1, and scale the others by 1 / (1 - p), so that the mean stays.

    Random numbers come from torch's default generator of the device, or from a key: see kernels/dropout_masks.py.
    Raises ConfigError for another p. Source: Srivastava et al. 2014, JMLR 15.
    """
    if not 0 <= p < 1:
        check_dropout(p)
    return drop(x, p, dims=2)


def drop(x: Float[Tensor, "*shape"], p: float, *, dims: int) -> Float[Tensor, "*shape"]:
    """`dropout` of a tensor whose last `dims` dims are a row of the batch: 2 for (seq, features), 3 for weights."""
    if p == 0:
        return x
    if kernel := backends.choose("dropout", x):
        return kernel(x, p, dims)
    if is_keyed() and not is_transformed():
        dropped, scale = draw(x, p, dims)
        return torch.where(dropped, 0.0, x) * scale
    return torch.nn.functional.dropout(x, p)
