"""The block's parts as formulas in float64, with common mistakes as switches.

`prenorm.functional` has the right ones too; here each stands next to its wrong variants, so that what a learner's part
gives can be recognised. Nothing else uses these.
"""

import math

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T."""
    return x.double() @ weight.double().T


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, mistake: str = "") -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps)."""
    x, weight = x.double(), weight.double()
    if mistake == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    dim = -2 if mistake == "norm_over_sequence" else -1
    squares = x.square().sum(dim, keepdim=True)
    size = squares if mistake == "norm_wrong_mean" else squares / x.shape[dim]
    match mistake:
        case "norm_without_sqrt":
            divisor = size + eps
        case "eps_outside_sqrt":
            divisor = size.sqrt() + eps
        case "wrong_eps":
            divisor = size.sqrt()
        case _:
            divisor = (size + eps).sqrt()
    return x / divisor if mistake == "norm_weight_missing" else weight * x / divisor


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, mistake: str = "") -> Tensor:
    """down(silu(gate(x)) * up(x))."""
    g, u = linear(x, gate), linear(x, up)
    functional = torch.nn.functional
    match mistake:
        case "gate_after_product":
            inside = functional.silu(g * u)
        case "relu instead of silu":
            inside = g.relu() * u
        case "gelu instead of silu":
            inside = functional.gelu(g) * u
        case "sigmoid instead of silu":
            inside = g.sigmoid() * u
        case "no activation":
            inside = g * u
        case "up(x) left out":
            inside = functional.silu(g)
        case _:
            inside = functional.silu(g) * u
    return linear(inside, down)


def rope(x: Tensor, positions: Tensor, theta: float, *, mistake: str = "") -> Tensor:
    """Pairs (2i, 2i+1) of x (..., seq, head_dim), turned by position * theta^(-2i / head_dim)."""
    half = x.shape[-1] // 2
    theta = 10000.0 if mistake == "rope_theta_ignored" else theta
    exponents = torch.arange(half, dtype=torch.float64) / (2 * half if mistake == "rope_wrong_frequency" else half)
    if mistake == "token_positions_ignored":
        positions = torch.arange(x.shape[-2])
    if mistake == "positions_off_by_one":
        positions = positions + 1
    angles = positions.double()[..., None] * theta**-exponents
    if mistake == "rope_wrong_direction":
        angles = -angles
    cos, sin = angles.cos(), angles.sin()
    if mistake == "rope_half_split":
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def attention(
    x: Tensor,
    weights: tuple[Tensor, ...],
    num_heads: int,
    positions: Tensor,
    theta: float,
    *,
    mistake: str = "",
) -> Tensor:
    """Multi-head self-attention over x (batch, seq, d_model) with rotated queries and keys; weights: q, k, v, o."""
    q, k, v = (_heads(linear(x, weight), num_heads, mistake) for weight in weights[:3])
    if mistake not in ("missing_rope", "rope_on_keys_only"):
        q = rope(q, positions, theta, mistake=mistake)
    if mistake not in ("missing_rope", "rope_on_queries_only"):
        k = rope(k, positions, theta, mistake=mistake)
    if mistake == "rope_on_values":
        v = rope(v, positions, theta)
    head_dim = q.shape[-1]
    scale = {"missing_attention_scale": 1.0, "wrong_attention_scale": 1 / head_dim, "scale": x.shape[-1] ** -0.5}
    scores = q @ k.mT * scale.get(mistake, 1 / math.sqrt(head_dim))
    if mistake == "causal_mask":
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
    attended = scores.softmax(-2 if mistake == "softmax_wrong_dim" else -1) @ v
    joined = (attended if mistake == "heads_not_merged" else attended.transpose(1, 2)).reshape(x.shape)
    return joined if mistake == "missing_output_projection" else linear(joined, weights[3])


def _heads(x: Tensor, num_heads: int, mistake: str) -> Tensor:
    batch, seq, width = x.shape
    if mistake == "wrong_head_split":
        return x.reshape(batch, num_heads, seq, width // num_heads)
    return x.reshape(batch, seq, num_heads, width // num_heads).transpose(1, 2)
