"""The linear map."""

import torch
from jaxtyping import Float
from torch import Tensor

from . import backends


def linear(
    x: Float[Tensor, "*batch in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None = None,
) -> Float[Tensor, "*batch out_features"]:
    """y = x W^T + b: a weight is stored as (out_features, in_features), as PyTorch and checkpoints have it."""
    if kernel := backends.choose("linear", x, weight, bias):
        result: Tensor = kernel(x, weight, bias)
        return result
    return torch.nn.functional.linear(x, weight, bias)
