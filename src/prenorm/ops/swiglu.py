"""The gated feed-forward."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ShapeError
from . import backends
from .arguments import differ
from .linear import linear


def swiglu(
    x: Float[Tensor, "*batch d_model"],
    gate_proj_weight: Float[Tensor, "d_ff d_model"],
    up_proj_weight: Float[Tensor, "d_ff d_model"],
    down_proj_weight: Float[Tensor, "d_model d_ff"],
) -> Float[Tensor, "*batch d_model"]:
    """y = W_down (silu(W_gate x) * W_up x). Source: Shazeer 2020, arXiv:2002.05202."""
    return linear(silu_gate(linear(x, gate_proj_weight), linear(x, up_proj_weight)), down_proj_weight)


def silu_gate(gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """silu(gate) * up: how much of each number of `up` goes through. Raises ShapeError for two shapes."""
    if kernel := backends.choose("silu_gate", gate, up):
        gated: Tensor = kernel(gate, up)
        return gated
    if differ(gate.shape, up.shape):
        raise ShapeError(
            f"gate and up must have one shape, but are {tuple(gate.shape)} and {tuple(up.shape)}; gate_proj and "
            "up_proj must have the same d_ff."
        )
    return silu(gate) * up


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x * sigmoid(x), also called swish."""
    return torch.nn.functional.silu(x)
