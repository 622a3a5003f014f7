"""The Gaussian error linear unit."""

import torch
from jaxtyping import Float
from torch import Tensor


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x * Phi(x), Phi the normal distribution function: the exact form, through erf, not the tanh approximation.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return torch.nn.functional.gelu(x)
