"""Dropout."""

import torch
from jaxtyping import Float
from torch import Tensor

from . import backends


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Zero each number with probability p, 0 <= p < 1, and scale the others by 1 / (1 - p), so that the mean stays.

    Random numbers come from torch's default generator of the device. Source: Srivastava et al. 2014, JMLR 15.
    """
    if p == 0:
        return x
    if kernel := backends.choose("dropout", x):
        return kernel(x, p)
    return torch.nn.functional.dropout(x, p)
