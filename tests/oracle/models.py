"""The block and the language model in float64 NumPy, from a dict of weights with the package's names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formulas import Array, Scaling, attention, cross_entropy, documents, may_attend, rms_norm, rope, swiglu

Weights = Mapping[str, Array]


def block(
    weights: Weights,
    x: Array,
    token_positions: NDArray[np.int64] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    rope_theta: float = 10000.0,
    eps: float = 1e-6,
    causal: bool = False,
    window: int | None = None,
    rope_interleaved: bool = True,
    rope_scaling: Scaling = None,
    qk_norm: bool = False,
    mask: NDArray[np.bool_] | None = None,
    segment_ids: NDArray[np.int64] | None = None,
) -> Array:
    """The pre-norm block, one row of the batch at a time; biases are used where `weights` has them."""
    *leading, seq, d_model = x.shape
    num_kv_heads = num_kv_heads or num_heads
    head_dim = head_dim or d_model // num_heads
    scores_shape = (*leading, num_heads, seq, seq)
    masks = np.broadcast_to(True if mask is None else mask, scores_shape).reshape(-1, num_heads, seq, seq)
    ids = np.broadcast_to(0 if segment_ids is None else segment_ids, (*leading, seq)).reshape(-1, seq)
    positions = None if token_positions is None else np.broadcast_to(token_positions, (*leading, seq)).reshape(-1, seq)

    def heads(rows: Array, name: str, count: int) -> Array:
        out = project(weights, f"attn.{name}_proj", rows).reshape(seq, count, head_dim).transpose(1, 0, 2)
        return rms_norm(out, weights[f"attn.{name}_norm.weight"], eps) if qk_norm and name != "v" else out

    out = np.empty((len(ids), seq, d_model))
    for row, x_row in enumerate(x.reshape(-1, seq, d_model)):
        together, places = documents(ids[row])
        turned_by = places if positions is None else positions[row]
        normed = rms_norm(x_row, weights["norm1.weight"], eps)
        q = rope(
            heads(normed, "q", num_heads), turned_by, rope_theta, interleaved=rope_interleaved, scaling=rope_scaling
        )
        k = rope(
            heads(normed, "k", num_kv_heads), turned_by, rope_theta, interleaved=rope_interleaved, scaling=rope_scaling
        )
        allowed = may_attend(seq, seq, causal=causal, window=window) & together & masks[row]
        attended = attention(q, k, heads(normed, "v", num_kv_heads), allowed)
        x_row = x_row + project(weights, "attn.o_proj", attended.transpose(1, 0, 2).reshape(seq, -1))
        ffn = [weights[f"ffn.{name}_proj.weight"] for name in ("gate", "up", "down")]
        out[row] = x_row + swiglu(rms_norm(x_row, weights["norm2.weight"], eps), *ffn)
    return out.reshape(x.shape)


def language_model(
    weights: Weights,
    token_ids: NDArray[np.int64],
    token_positions: NDArray[np.int64] | None = None,
    *,
    num_layers: int,
    eps: float = 1e-6,
    segment_ids: NDArray[np.int64] | None = None,
    **options: Any,
) -> Array:
    """Logits (..., seq, vocab). `options` are those of `block`; without lm_head.weight the embedding is the head."""
    x = weights["embedding.weight"][token_ids]
    for layer in range(num_layers):
        prefix = f"layers.{layer}."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        x = block(own, x, token_positions, eps=eps, causal=True, segment_ids=segment_ids, **options)
    head = weights.get("lm_head.weight", weights["embedding.weight"])
    return rms_norm(x, weights["final_norm.weight"], eps) @ head.T


def language_model_loss(
    weights: Weights, token_ids: NDArray[np.int64], targets: NDArray[np.int64], **options: Any
) -> float:
    """Nats a token over the targets that are not -100 and not padding."""
    segment_ids = options.get("segment_ids")
    if segment_ids is not None:
        targets = np.where(segment_ids < 0, -100, targets)
    return cross_entropy(language_model(weights, token_ids, **options), targets)


def project(weights: Weights, name: str, x: Array) -> Array:
    """x W^T, plus the bias if there is one."""
    out = x @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out
