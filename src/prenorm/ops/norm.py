"""RMS normalisation."""

import torch
from jaxtyping import Float
from torch import Tensor

from . import backends


def rms_norm(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, " d_model"], *, eps: float = 1e-6
) -> Float[Tensor, "*batch d_model"]:
    """Bring every vector to root mean square 1, then scale it by `weight`.

    y = weight * x / sqrt(mean(x^2) + eps), the mean over d_model.
    Everything runs in float32 or wider and is cast once, at the end; y has the dtype of x.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if kernel := backends.choose("rms_norm", x, weight):
        return kernel(x, weight, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = (wide.square() / x.shape[-1]).sum(-1, keepdim=True)  # divided first: the sum of squares of 1e18 overflows
    return (weight * wide * torch.rsqrt(mean + eps)).to(x.dtype)
