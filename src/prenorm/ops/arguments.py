"""Checks on the tensors that an op is given: of shapes that would broadcast, and dtypes that would truncate."""

import torch
from torch import Tensor

from ..errors import ShapeError
from ..private_torch import get_tracing_state


def check_floating(**tensors: Tensor) -> None:
    """Raise ShapeError for a tensor of integers or complex numbers, to whose dtype the result would be cut off."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} must be floating point, but it is {tensor.dtype}; {name}.float() makes it that.")


def check_features(x: Tensor, **weights: Tensor) -> None:
    """Raise ShapeError unless each of these has one number for each feature of x: others would broadcast."""
    for name, weight in weights.items():
        if differ(weight.shape, x.shape[-1:]):
            raise ShapeError(
                f"{name} must have one number for each feature, (d_model,) = {tuple(x.shape[-1:])}, but it is "
                f"{tuple(weight.shape)}."
            )


def differ(shape: torch.Size, other: torch.Size) -> bool:
    """Whether two shapes differ; not asked while torch.jit.trace records, to which sizes are tensors."""
    return get_tracing_state() is None and shape != other


def check_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ShapeError unless x W^T + b can be computed with nothing broadcast, in one dtype or under autocast."""
    if weight.ndim != 2:
        raise ShapeError(f"weight must be (out_features, in_features), but it is {tuple(weight.shape)}.")
    if bias is not None and differ(bias.shape, weight.shape[:1]):
        raise ShapeError(f"bias must be (out_features,) = {tuple(weight.shape[:1])}, but it is {tuple(bias.shape)}.")
    if x.dtype != weight.dtype and not is_autocast(x):
        raise ShapeError(
            f"x and weight must have one dtype, but have {x.dtype} and {weight.dtype}; x.to({weight.dtype}) or "
            "torch.autocast would do."
        )


def is_autocast(x: Tensor) -> bool:
    """Whether autocast rounds products of tensors like x; there is none on the meta device."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
