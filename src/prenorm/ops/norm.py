"""RMS normalisation."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..validation import check_number
from . import backends
from .arguments import check_features, check_floating


def rms_norm(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, " d_model"], *, eps: float = 1e-6
) -> Float[Tensor, "*batch d_model"]:
    """Bring every vector to root mean square 1, then scale it by `weight`.

    y = weight * x / sqrt(mean(x^2) + eps), the mean over d_model.
    Everything runs in float32 or wider and is cast once, at the end; y has the dtype of x.
    Raises ShapeError and ConfigError. Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if not eps >= 0:
        check_number("eps", eps, at_least=0.0)
    if kernel := backends.choose("rms_norm", x, weight):
        return kernel(x, weight, eps)
    check_floating(x=x)
    check_features(x, weight=weight)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = (wide.square() / x.shape[-1]).sum(-1, keepdim=True)  # divided first: the sum of squares of 1e18 overflows
    return (weight * wide * torch.rsqrt(mean + eps)).to(x.dtype)
