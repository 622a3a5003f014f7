"""Absolute positions as sines and cosines."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .integers import check_integers

LONGEST = 10000.0  # the base of the wavelengths, from 2 pi to 2 pi times this


def sinusoidal_positions(
    token_positions: Int[Tensor, "*positions"], d_model: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*positions {d_model}"]:
    """A vector for each position: sin(position / 10000^(2i / d_model)) at 2i, the cosine of the same at 2i + 1.

    Computed in float64 (on the CPU where the device has none) and rounded once.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    check_integers("token_positions", token_positions)
    device = torch.device("cpu") if token_positions.device.type == "mps" else token_positions.device
    exponents = torch.arange(0, d_model, 2, dtype=torch.float64, device=device) / d_model
    angles = token_positions.to(device, torch.float64)[..., None] * LONGEST**-exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(token_positions.device, dtype)
