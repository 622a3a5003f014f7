"""The frequencies of rotary embedding, and how they are stretched for long contexts."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ConfigError
from ..rope_scaling import RopeScaling, check_rotated


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None, lengths: Int[Tensor, "*lengths"] | None = None
) -> Float[Tensor, "*lengths half"]:
    """theta^(-2i / head_dim) for i in 0 .. head_dim/2 - 1, in radians a token, as float64.

    lengths: how many tokens there are in the sequence of each token, for a scaling that asks (`by_length`); the
    frequencies are then on their device. None: no more than in the original training. Otherwise on the CPU.
    """
    if head_dim % 2:
        raise ConfigError(
            f"head_dim must be even, because rotary embedding turns pairs, but it is {head_dim}; "
            f"head_dim={head_dim + 1} would do."
        )
    if scaling is not None:
        check_rotated(head_dim, theta, scaling)
    device = "cpu" if lengths is None else lengths.device
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    frequencies = theta**-exponents
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3_frequencies(frequencies, scaling)
    if scaling.kind == "yarn":
        return _yarn_frequencies(frequencies, theta, scaling)
    if scaling.kind == "longrope":
        return frequencies / _longrope_factors(scaling, lengths, device)
    return frequencies if lengths is None else _dynamic_frequencies(exponents, theta, scaling, lengths)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied by, so that longer contexts do not flatten attention."""
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    stretched = math.log(scaling.factor)
    if scaling.kind == "yarn":
        return 0.1 * stretched + 1
    return math.sqrt(1 + stretched / math.log(scaling.original_max_seq_len))


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    # How many whole turns a pair makes within the original context decides how much it is stretched.
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


_FAR = 1e18  # more turns, and more pairs, than there are


def _yarn_frequencies(frequencies: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    head_dim = 2 * len(frequencies)

    def pair_with(turns: float) -> float:
        """The pair, as a fraction, that turns so often within the original context."""
        times = scaling.original_max_seq_len / (turns * 2 * math.pi)
        times = min(max(times, 1 / _FAR), _FAR)  # also where a hostile file asks for 1e-300 turns
        pair = head_dim * math.log(times) / (2 * math.log(theta))
        return min(max(pair, -_FAR), _FAR)

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last = last if last != first else last + 0.001  # as the reference code has it
    pairs = torch.arange(len(frequencies), dtype=torch.float64, device=frequencies.device)
    stretched = ((pairs - first) / (last - first)).clamp(0, 1)
    return (1 - stretched) * frequencies + stretched * frequencies / scaling.factor


def _longrope_factors(scaling: RopeScaling, lengths: Tensor | None, device: torch.device | str) -> Tensor:
    short, long = (
        torch.tensor(factors, dtype=torch.float64, device=device)
        for factors in (scaling.short_factors, scaling.long_factors)
    )
    return short if lengths is None else torch.where((lengths > scaling.original_max_seq_len)[..., None], long, short)


def _dynamic_frequencies(exponents: Tensor, theta: float, scaling: RopeScaling, lengths: Tensor) -> Tensor:
    head_dim, factor = 2 * len(exponents), scaling.factor
    share = lengths.clamp_min(scaling.original_max_seq_len).to(torch.float64) / scaling.original_max_seq_len
    base = theta * (factor * share - (factor - 1)) ** (head_dim / (head_dim - 2))
    return base[..., None] ** -exponents
