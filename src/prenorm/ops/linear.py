"""The linear map."""

import torch
from jaxtyping import Float
from torch import Tensor

from . import backends
from .arguments import check_product, differ


def linear(
    x: Float[Tensor, "*batch in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None = None,
) -> Float[Tensor, "*batch out_features"]:
    """y = x W^T + b: a weight is stored as (out_features, in_features), as PyTorch and checkpoints have it.

    Raises ShapeError for a weight or bias of another number of dims, and for x and weight of two dtypes.
    """
    if bias is not None and differ(bias.shape, weight.shape[:1]):  # before a kernel reads beyond it
        check_product(x, weight, bias)
    if kernel := backends.choose("linear", x, weight, bias):
        result: Tensor = kernel(x, weight, bias)
        return result
    check_product(x, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)
