"""Layer normalisation."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..validation import check_number
from . import backends
from .arguments import check_features, check_floating


def layer_norm(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"],
    bias: Float[Tensor, " d_model"],
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch d_model"]:
    """Bring every vector to mean 0 and variance 1, then scale it by `weight` and shift it by `bias`.

    y = weight * (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) + bias, the means over d_model.
    Everything runs in float32 or wider and is cast once, at the end; y has the dtype of x.
    Raises ShapeError and ConfigError. Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if not eps >= 0:
        check_number("eps", eps, at_least=0.0)
    check_features(x, weight=weight, bias=bias)
    if kernel := backends.choose("layer_norm", x, weight, bias):
        return kernel(x, weight, bias, eps)
    check_floating(x=x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - (wide / x.shape[-1]).sum(-1, keepdim=True)
    variance = (centred.square() / x.shape[-1]).sum(-1, keepdim=True)
    return (weight * centred * torch.rsqrt(variance + eps) + bias).to(x.dtype)
