"""The frequencies of rotary embedding, and how they are stretched for long contexts."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import RopeScaling
from ..errors import ConfigError


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[Tensor, " half"]:
    """theta^(-2i / head_dim) for i in 0 .. head_dim/2 - 1, in radians a token, as float64 on the CPU."""
    if head_dim % 2:
        raise ConfigError(
            f"head_dim must be even, because rotary embedding turns pairs, but it is {head_dim}; "
            f"head_dim={head_dim + 1} would do."
        )
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    frequencies = theta**-exponents
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3_frequencies(frequencies, scaling)


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    # How many whole turns a pair makes within the original context decides how much it is stretched.
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor
