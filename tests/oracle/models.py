"""The blocks, the language model and the encoder-decoder in float64 NumPy, from weights with the package's names."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formulas import (
    Array,
    Scaling,
    attention,
    cross_entropy,
    documents,
    gelu,
    layer_norm,
    may_attend,
    rms_norm,
    rope,
    same_document,
    sinusoid,
    swiglu,
)

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


def encoder_decoder(
    weights: Weights,
    source_ids: NDArray[np.int64],
    target_ids: NDArray[np.int64],
    *,
    num_layers: int,
    num_decoder_layers: int,
    num_heads: int,
    eps: float = 1e-5,
    source_segment_ids: NDArray[np.int64] | None = None,
    target_segment_ids: NDArray[np.int64] | None = None,
) -> Array:
    """Logits (..., seq, vocab), one row of the batch at a time. Without position weights positions are sinusoids.

    Segment ids on one side alone: its one document belongs to all of the other side.
    """
    rows = [ids.reshape(-1, ids.shape[-1]) for ids in (source_ids, target_ids)]
    both = source_segment_ids is not None and target_segment_ids is not None
    segments = [
        np.zeros_like(ids) if given is None else np.where(given < 0, -1, given if both else 0).reshape(ids.shape)
        for ids, given in zip(rows, (source_segment_ids, target_segment_ids), strict=True)
    ]
    head = weights.get("lm_head.weight", weights["embedding.weight"])
    logits = np.empty((len(rows[1]), target_ids.shape[-1], len(head)))
    for row, (source, target, of_source, of_target) in enumerate(zip(*rows, *segments, strict=True)):
        encoded = encode(weights, source, of_source, num_layers=num_layers, num_heads=num_heads, eps=eps)
        x = embed(weights, "target", target, of_target)
        allowed = may_attend(len(target), len(target), causal=True) & documents(of_target)[0]
        reads = same_document(of_target, of_source)
        for layer in range(num_decoder_layers):
            x = decoder_block(below(weights, f"decoder.layers.{layer}."), x, encoded, allowed, reads, num_heads, eps)
        logits[row] = norm(weights, "decoder.final_norm", x, eps) @ head.T
    return logits.reshape(*target_ids.shape, len(head))


def encoder_decoder_loss(
    weights: Weights,
    source_ids: NDArray[np.int64],
    target_ids: NDArray[np.int64],
    targets: NDArray[np.int64],
    **options: Any,
) -> float:
    """Nats a token over the targets that are not -100 and not padding."""
    if options.get("target_segment_ids") is not None:
        targets = np.where(options["target_segment_ids"] < 0, -100, targets)
    return cross_entropy(encoder_decoder(weights, source_ids, target_ids, **options), targets)


def encode(
    weights: Weights,
    source_ids: NDArray[np.int64],
    segment_ids: NDArray[np.int64],
    *,
    num_layers: int,
    num_heads: int,
    eps: float = 1e-5,
) -> Array:
    """What the encoder makes of one row of source ids."""
    x = embed(weights, "source", source_ids, segment_ids)
    for layer in range(num_layers):
        x = encoder_block(
            below(weights, f"encoder.layers.{layer}."), x, documents(segment_ids)[0], num_heads=num_heads, eps=eps
        )
    return norm(weights, "encoder.final_norm", x, eps)


def embed(weights: Weights, side: str, ids: NDArray[np.int64], segment_ids: NDArray[np.int64]) -> Array:
    """Vaswani et al. 2017, section 3.4: embeddings times sqrt(d_model), then the positions of one row of ids."""
    table = weights["embedding.weight"]
    if side == "target":
        table = weights.get("target_embedding.weight", table)
    learned = weights.get(f"{side}_positions.embedding.weight")
    x = np.empty((len(ids), table.shape[1]))
    for place, position in enumerate(documents(segment_ids)[1]):
        vector = sinusoid(position, table.shape[1]) if learned is None else learned[position]
        x[place] = table[ids[place]] * math.sqrt(table.shape[1]) + vector
    return x


def encoder_block(
    weights: Weights, x: Array, allowed: NDArray[np.bool_] | None = None, *, num_heads: int, eps: float = 1e-5
) -> Array:
    """The classical block on one row x (seq, d_model), each norm before its sublayer."""
    normed = norm(weights, "norm1", x, eps)
    x = x + multihead(below(weights, "attn."), normed, normed, allowed, num_heads)
    return x + feed_forward(weights, norm(weights, "norm2", x, eps))


def decoder_block(
    weights: Weights,
    x: Array,
    encoded: Array,
    allowed: NDArray[np.bool_] | None,
    reads: NDArray[np.bool_] | None,
    num_heads: int,
    eps: float = 1e-5,
) -> Array:
    """The classical block with cross-attention to `encoded` (source seq, d_model) between the two."""
    normed = norm(weights, "norm1", x, eps)
    x = x + multihead(below(weights, "self_attn."), normed, normed, allowed, num_heads)
    x = x + multihead(below(weights, "cross_attn."), norm(weights, "norm2", x, eps), encoded, reads, num_heads)
    return x + feed_forward(weights, norm(weights, "norm3", x, eps))


def multihead(
    weights: Weights,
    x: Array,
    context: Array,
    allowed: NDArray[np.bool_] | None,
    num_heads: int,
    *,
    values: Array | None = None,
) -> Array:
    """Vaswani et al. 2017, section 3.2.2: queries from x, keys and values from the context, unless `values` are."""

    def heads(name: str, rows: Array) -> Array:
        out = project(weights, f"{name}_proj", rows)
        return out.reshape(len(rows), num_heads, out.shape[-1] // num_heads).transpose(1, 0, 2)

    values = context if values is None else values
    attended = attention(heads("q", x), heads("k", context), heads("v", values), allowed)
    return project(weights, "o_proj", attended.transpose(1, 0, 2).reshape(x.shape))


def feed_forward(weights: Weights, x: Array) -> Array:
    """Vaswani et al. 2017, equation 2, with GELU for ReLU."""
    return project(weights, "ffn.down_proj", gelu(project(weights, "ffn.up_proj", x)))


def norm(weights: Weights, name: str, x: Array, eps: float) -> Array:
    """The LayerNorm of that name."""
    return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def below(weights: Weights, prefix: str) -> dict[str, Array]:
    """The weights under a prefix, without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
