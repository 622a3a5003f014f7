"""Softmax over a row that may be empty."""

import torch
from jaxtyping import Float
from torch import Tensor

from .arguments import check_floating


def softmax(x: Float[Tensor, "*shape"], dim: int = -1) -> Float[Tensor, "*shape"]:
    """exp(x) / sum(exp(x)) along `dim`, computed in float32 or wider; y has the dtype of x.

    A row of nothing but -inf (nothing may be chosen) gives zeros, not NaN.
    Raises ShapeError for integers.
    """
    check_floating(x=x)
    if x.shape[dim] == 0:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.detach().amax(dim, keepdim=True)  # keeps exp within range; cancels out of the quotient
    exp = (wide - largest.masked_fill(largest == -torch.inf, 0)).exp()
    total = exp.sum(dim, keepdim=True)
    return (exp / total.masked_fill(total == 0, 1)).to(x.dtype)
