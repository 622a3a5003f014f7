"""Multi-head self-attention as a plain function of its weights."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ShapeError
from ..validation import attention_sizes, check_size
from .attention import scaled_dot_product_attention
from .heads import merge_heads, split_heads
from .linear import linear
from .position_checks import check_length, check_position_shape, check_positions
from .rope import rope


def multihead_self_attention(
    *,
    d_model: int,
    num_heads: int,
    q_proj_weight: Float[Tensor, "q_features d_in"],
    k_proj_weight: Float[Tensor, "k_features d_in"],
    v_proj_weight: Float[Tensor, "v_features d_in"],
    o_proj_weight: Float[Tensor, "d_out v_features"],
    in_features: Float[Tensor, "*batch seq d_in"],
    causal: bool = False,
) -> Float[Tensor, "*batch seq d_out"]:
    """Project to queries, keys and values, attend in each head, merge the heads and project out.

    Weights are (d_out, d_in); the rows of a projection are its heads, one after another.
    Raises ConfigError and ShapeError. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """
    q, k, v = _project(d_model, num_heads, q_proj_weight, k_proj_weight, v_proj_weight, in_features, rotary=False)
    return _attend(q, k, v, o_proj_weight, causal=causal)


def multihead_self_attention_with_rope(
    *,
    d_model: int,
    num_heads: int,
    max_seq_len: int,
    theta: float,
    q_proj_weight: Float[Tensor, "q_features d_in"],
    k_proj_weight: Float[Tensor, "k_features d_in"],
    v_proj_weight: Float[Tensor, "v_features d_in"],
    o_proj_weight: Float[Tensor, "d_out v_features"],
    in_features: Float[Tensor, "*batch seq d_in"],
    token_positions: Int[Tensor, "*positions seq"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "*batch seq d_out"]:
    """`multihead_self_attention` with queries and keys turned by rotary embedding, pairs (2i, 2i+1).

    token_positions: (seq,) or (..., seq) with the leading dims of in_features, each below max_seq_len; default
    0 .. seq-1. Raises RangeError for positions outside.
    """
    q, k, v = _project(d_model, num_heads, q_proj_weight, k_proj_weight, v_proj_weight, in_features, rotary=True)
    check_size("max_seq_len", max_seq_len)
    if token_positions is None:
        check_length(in_features.shape[-2], max_seq_len)
        token_positions = torch.arange(in_features.shape[-2], device=in_features.device)
    else:
        check_position_shape(token_positions, in_features)
        check_positions(token_positions, max_seq_len)
    q, k = (rope(x, token_positions.unsqueeze(-2), theta=theta) for x in (q, k))
    return _attend(q, k, v, o_proj_weight, causal=causal)


def _project(
    d_model: int,
    num_heads: int,
    q_proj_weight: Tensor,
    k_proj_weight: Tensor,
    v_proj_weight: Tensor,
    in_features: Tensor,
    *,
    rotary: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    head_dim = attention_sizes(d_model, num_heads, None, None, rotary=rotary)[1]
    if in_features.ndim < 2:
        raise ShapeError(f"in_features must be (..., seq, d_in), but it is {tuple(in_features.shape)}.")
    weights = {"q_proj_weight": q_proj_weight, "k_proj_weight": k_proj_weight, "v_proj_weight": v_proj_weight}
    for name, weight in weights.items():
        if tuple(weight.shape) != (d_model, in_features.shape[-1]):
            raise ShapeError(
                f"{name} must be (d_model, d_in) = ({d_model}, {in_features.shape[-1]}), but it is "
                f"{tuple(weight.shape)}."
            )
    q, k, v = (split_heads(linear(in_features, weight), head_dim) for weight in weights.values())
    return q, k, v


def _attend(q: Tensor, k: Tensor, v: Tensor, o_proj_weight: Tensor, *, causal: bool) -> Tensor:
    merged = merge_heads(scaled_dot_product_attention(q, k, v, causal=causal))
    d_model = merged.shape[-1]
    if o_proj_weight.shape[-1] != d_model:
        raise ShapeError(
            f"o_proj_weight must be (d_out, d_model) with d_model = {d_model}, but it is {tuple(o_proj_weight.shape)}."
        )
    return linear(merged, o_proj_weight)
