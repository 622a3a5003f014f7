"""Rotary position embedding: each pair of features turns by an angle that grows with the token's position."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..rope_scaling import RopeScaling
from ..validation import check_number
from . import backends
from .arguments import check_floating
from .position_checks import check_broadcast
from .rope_frequencies import attention_factor, rope_frequencies


def rope(
    x: Float[Tensor, "*batch seq head_dim"],
    token_positions: Int[Tensor, "*positions seq"] | None = None,
    *,
    theta: float = 10000.0,
    interleaved: bool = True,
    scaling: RopeScaling | None = None,
) -> Float[Tensor, "*batch seq head_dim"]:
    """Turn pair i of the features by +position * theta^(-2i / head_dim), in radians.

    interleaved: pair i is features (2i, 2i+1), as in the paper; otherwise (i, i + head_dim/2), as in Hugging Face
    folders. token_positions broadcast against the leading dims of x and default to 0 .. seq-1. Angles are computed in
    float64; the rotation runs in float32 or wider and y has the dtype of x.
    Raises ShapeError and ConfigError. Source: Su et al. 2021, arXiv:2104.09864.
    """
    check_floating(x=x)
    check_number("theta", theta, above=0.0)
    if token_positions is None:
        token_positions = torch.arange(x.shape[-2], device=x.device)
    else:
        check_broadcast(token_positions, x)
    wide = torch.promote_types(x.dtype, torch.float32)
    lengths = row_lengths(token_positions) if scaling is not None and scaling.by_length else None
    angles = rope_angles(token_positions, rope_frequencies(x.shape[-1], theta, scaling, lengths).to(x.device))
    factor = attention_factor(scaling)
    cos, sin = ((one * factor).to(wide) for one in (angles.cos(), angles.sin()))
    return rotate(x, cos, sin, interleaved=interleaved)


def row_lengths(token_positions: Int[Tensor, "*positions seq"]) -> Int[Tensor, "*positions seq"]:
    """How long the sequence of each token is where a row is one sequence: its largest position, and one more."""
    if token_positions.shape[-1] == 0:
        return token_positions
    return token_positions.amax(-1, keepdim=True).expand(token_positions.shape) + 1


def rotate(
    x: Float[Tensor, "*batch seq head_dim"],
    cos: Float[Tensor, "*positions seq half"],
    sin: Float[Tensor, "*positions seq half"],
    *,
    interleaved: bool,
) -> Float[Tensor, "*batch seq head_dim"]:
    """Turn the pairs of x by the angles whose cosines and sines are given: (a, b) -> (a cos - b sin, b cos + a sin)."""
    if kernel := backends.choose("rotate", x, cos, sin):
        rotated: Tensor = kernel(x, cos, sin, interleaved)
        return rotated
    wide = x.to(cos.dtype)
    if interleaved:
        a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = wide.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return turned.to(x.dtype)


def rope_angles(
    token_positions: Int[Tensor, "*positions seq"], frequencies: Float[Tensor, "*of_tokens half"]
) -> Float[Tensor, "*positions seq half"]:
    """position * frequency in float64: in float32 an angle near position 100,000 would be off by 0.004 radians."""
    return token_positions.to(torch.float64)[..., None] * frequencies
