"""Attention, with every choice of a spec."""

import math

import torch
from torch import Tensor

from .norm import norm, scaled
from .rotation import rotated, stream
from .spec import Spec, Weights, along, are_several, linear
from .variants import ENDS, MASKS, NO_SOFTMAX, SCALES, SHIFTS, SQUARES

OF_HEADS = frozenset(SQUARES) - {"sequence", "batch"}
"""Kinds of the block's norms that norms of queries and keys have too."""


def attention(
    spec: Spec, weights: Weights, x: Tensor, positions: Tensor, num_heads: int, allowed: Tensor | None = None
) -> Tensor:
    """Self-attention of x, (readings, batch, seq, d_model)."""
    width = weights["q"].shape[-1]
    head_dim = weights["q"].shape[-2] // num_heads
    if spec.split == "swapped":  # heads and head_dim are exchanged
        num_heads, head_dim = head_dim, num_heads
    if spec.split == "never":
        head_dim *= num_heads
    turned = stream(spec, x, positions, head_dim) if spec.rope_input in ("normed", "qk") else x
    inputs = {"q": turned, "k": turned, "v": x if spec.rope_input == "qk" else turned}
    seen = spec.mask in ("none", "causal") and allowed is None
    alone = x.shape[-2] == 1 and seen and spec.softmax == "keys" and not spec.scaled_after
    parts = {}
    for name, source in inputs.items():
        if alone and name != "v":  # the softmax of one score is 1, and most searches use one token
            continue
        part = linear(weights, name, source)
        if spec.qk_norm == "whole" and name != "v":  # over d_model, all heads together
            part = norm(
                spec, _kind_of(spec, "rms"), _eps_of(spec), weights, (f"{name}_norm", f"{name}_norm_bias"), part
            )
        places = SHIFTS[{"q": spec.query_shift, "k": spec.key_shift, "v": "no"}[name]](positions)
        turn = spec.turn if name in spec.turn_of else "rotation"
        if spec.rope_axis == "width" and name in spec.rope_on:
            part = rotated(spec, part, places, width, turn)
        part = _split(spec.split if name in spec.split_of else "standard", part, head_dim)
        part = _normed_heads(spec, weights, name, "before_rope", part)
        if spec.rope_axis == "head" and name in spec.rope_on:
            part = rotated(spec, part, places[:, None], width, turn)
        parts[name] = _normed_heads(spec, weights, name, "after_rope", part)
    heads = 1 if spec.split == "never" else num_heads
    mixed = v = _grouped(spec, "v", parts["v"], heads)
    if not alone:
        q, k = parts["q"], _grouped(spec, "k", parts["k"], heads)
        scale = SCALES[spec.scale](q.shape[-1], width, num_heads, x.shape[-2]) * along(spec.factor, q)
        scores = q @ k.mT * (1 if spec.scaled_after else scale)
        mixed = _probabilities(spec, _shaped(spec, scores, heads), allowed) @ v
        mixed = mixed * scale if spec.scaled_after else mixed
    joined = _merge(spec, mixed)
    if spec.attention_gate == "before":
        joined = _gated(weights, x, joined)
    y = joined if spec.output == "none" or "o" not in weights else linear(weights, "o", joined)
    return ENDS[spec.end1](_gated(weights, x, y) if spec.attention_gate == "after" else y)


def _gated(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """y, each entry or head of which is multiplied by a number between 0 and 1."""
    if "attention_gate" not in weights:
        return y
    gate = linear(weights, "attention_gate", x).sigmoid()
    return y * gate.repeat_interleave(y.shape[-1] // gate.shape[-1], -1)


def _shaped(spec: Spec, scores: Tensor, num_heads: int) -> Tensor:
    """Scores after the changes that some models make before the softmax."""
    if are_several(spec.softcap) or spec.softcap != math.inf:
        cap = along(spec.softcap, scores)
        scores = cap * torch.tanh(scores / cap)
    if spec.alibi:
        slopes = 2.0 ** (-8 * torch.arange(1, num_heads + 1, dtype=scores.dtype) / num_heads)
        places = torch.arange(scores.shape[-1], dtype=scores.dtype)
        scores = scores - slopes[:, None, None] * (places[:, None] - places).abs()
    return scores


def _probabilities(spec: Spec, scores: Tensor, allowed: Tensor | None) -> Tensor:
    if spec.masked_after:
        return _softmax(spec, scores) * _seen(spec, scores, allowed)
    return _softmax(spec, _masked(spec, scores, allowed))


def _split(how: str, x: Tensor, head_dim: int) -> Tensor:
    """To (..., heads, seq, head_dim)."""
    heads = x.shape[-1] // head_dim
    if how == "flat":
        return x.reshape(*x.shape[:-2], heads, x.shape[-2], head_dim)
    if how == "flat_dims":  # (d_model, seq) is reshaped as if it were (seq, d_model)
        x = x.mT.reshape(x.shape)
    if how == "dims_first":
        return x.unflatten(-1, (head_dim, heads)).movedim(-1, -3)
    return x.unflatten(-1, (heads, head_dim)).transpose(-3, -2)


def _merge(spec: Spec, x: Tensor) -> Tensor:
    heads, seq, head_dim = x.shape[-3:]
    if spec.merge == "flat":
        return x.reshape(*x.shape[:-3], seq, heads * head_dim)
    if spec.merge == "dims_first":
        return x.movedim(-3, -1).flatten(-2)
    if spec.merge in ("mean", "sum"):  # of the heads, once for each of them
        joined = x.mean(-3) if spec.merge == "mean" else x.sum(-3)
        return torch.cat([joined] * heads, -1)
    if spec.merge == "flat_dims":  # (heads, head_dim, seq) is reshaped as if it were (seq, heads * head_dim)
        return x.mT.reshape(*x.shape[:-3], seq, heads * head_dim)
    return x.transpose(-3, -2).flatten(-2)


def _grouped(spec: Spec, role: str, x: Tensor, num_heads: int) -> Tensor:
    copies = num_heads // x.shape[-3]
    if copies == 1:
        return x
    return torch.cat([x] * copies, -3) if spec.tiled and role in spec.tiled_of else x.repeat_interleave(copies, -3)


def _normed_heads(spec: Spec, weights: Weights, name: str, when: str, x: Tensor) -> Tensor:
    if spec.qk_norm != when or name == "v":
        return x
    kind = spec.norm1 if spec.norm1 == spec.norm2 and spec.norm1 in OF_HEADS else "rms"
    y = scaled(_kind_of(spec, kind), *_eps_of(spec), x)
    weight, bias = (_of_heads(weights.get(name + end), x.shape[-1]) for end in ("_norm", "_norm_bias"))
    if weight is not None:
        y = y * (weight + 1 if spec.plus_one else weight)
    return y if bias is None else y + bias


def _kind_of(spec: Spec, same: str) -> str:
    return same if spec.qk_norm_kind == "same" else spec.qk_norm_kind


def _eps_of(spec: Spec) -> tuple[float, str]:
    return spec.eps1 if spec.qk_eps is None else spec.qk_eps, spec.eps_place1


def _of_heads(vector: Tensor | None, head_dim: int) -> Tensor | None:
    """A vector (readings, 1, 1, size) as (readings, 1, heads or 1, 1, head_dim)."""
    return None if vector is None else vector[:, :, 0].unflatten(-1, (-1, head_dim))[..., None, :]


def _seen(spec: Spec, scores: Tensor, allowed: Tensor | None) -> Tensor:
    """(seq, seq), True where a query may attend to a key."""
    queries, keys = (torch.arange(size) for size in scores.shape[-2:])
    ahead = keys - queries[:, None]
    seen = MASKS[spec.mask](ahead)
    return seen if allowed is None else seen & allowed


def _masked(spec: Spec, scores: Tensor, allowed: Tensor | None) -> Tensor:
    seen = _seen(spec, scores, allowed)
    if spec.fill_by == "multiplying":
        return scores * seen
    if spec.fill_by == "adding":
        return torch.where(seen, scores, scores + spec.fill)
    return scores.masked_fill(~seen, spec.fill)


def _softmax(spec: Spec, scores: Tensor) -> Tensor:
    if spec.softmax == "nothing":  # an axis of size 1
        return torch.ones_like(scores)
    if spec.softmax in NO_SOFTMAX:
        return NO_SOFTMAX[spec.softmax](scores)
    if spec.softmax == "queries, with the largest of the keys":
        exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
        return exponentials / exponentials.sum(-2, keepdim=True)
    probabilities = scores.softmax({"keys": -1, "queries": -2, "heads": -3}[spec.softmax])
    return probabilities.nan_to_num(0.0) if spec.empty_rows == "zero" else probabilities
