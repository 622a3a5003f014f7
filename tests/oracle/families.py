"""Language models of families in float64 NumPy, from weights with the package's names and the fields of a config."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formulas import Array, Places, attention, documents, gelu, layer_norm, may_attend, rms_norm, silu
from .formulas import frequency as plain_frequency
from .models import Weights, below, project

ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}


def family_model(
    weights: Weights,
    token_ids: NDArray[np.int64],
    token_positions: NDArray[np.int64] | None = None,
    *,
    config: Mapping[str, Any],
    segment_ids: NDArray[np.int64] | None = None,
) -> Array:
    """Logits (..., seq, vocab), one row of the batch at a time. `config`: the fields of a ModelConfig."""
    seq, family = token_ids.shape[-1], config["family"]
    head = weights.get("lm_head.weight", weights["embedding.weight"])
    ids = np.broadcast_to(0 if segment_ids is None else segment_ids, token_ids.shape).reshape(-1, seq)
    positions = None
    if token_positions is not None:
        positions = np.broadcast_to(token_positions, token_ids.shape).reshape(-1, seq)
    logits = np.empty((len(ids), seq, len(head)))
    for row, tokens in enumerate(token_ids.reshape(-1, seq)):
        together, places = documents(ids[row])
        x = weights["embedding.weight"][tokens] * family["embedding_scale"]
        if family["learned_positions"]:
            x = x + weights["positions.embedding.weight"][places if positions is None else positions[row]]
        for layer in range(config["num_layers"]):
            own = below(weights, f"layers.{layer}.")
            x = layer_of(own, x, places if positions is None else positions[row], together, layer, config)
        logits[row] = norm(weights, "final_norm", x, config) @ head.T / family["logit_divisor"]
    return capped(logits, family["logit_softcap"]).reshape(*token_ids.shape, len(head))


def layer_of(
    weights: Weights,
    x: Array,
    positions: Places,
    together: NDArray[np.bool_],
    layer: int,
    config: Mapping[str, Any],
) -> Array:
    """One layer on one row: what a sublayer gives is scaled, and normed before it, after it, or both."""
    family = config["family"]
    if family["residual"] == "parallel":
        normed = norm(weights, "norm1", x, config)
        both = (run(weights, normed, positions, together, layer, config) for run in (attend, feed_forward))
        return x + family["residual_scale"] * sum(both)
    if family["residual"] == "parallel_two_norms":
        attended, fed = (norm(weights, f"norm{number}", x, config) for number in "12")
        attended = attend(weights, attended, positions, together, layer, config)
        return x + family["residual_scale"] * (attended + feed_forward(weights, fed, config))
    for number, sublayer in (("1", attend), ("2", feed_forward)):
        y = x if family["residual"] == "post" else norm(weights, f"norm{number}", x, config)
        y = sublayer(weights, y, positions, together, layer, config)
        y = y if family["residual"] == "pre" else norm(weights, f"post_norm{number}", y, config)
        x = x + family["residual_scale"] * y
    return x


def attend(
    weights: Weights,
    x: Array,
    positions: Places,
    together: NDArray[np.bool_],
    layer: int,
    config: Mapping[str, Any],
) -> Array:
    """Self-attention of one layer."""
    family, head_dim, seq = config["family"], config["head_dim"], len(x)
    window = (family["windows"][layer] or None) if family["windows"] else None

    def heads(name: str, count: int) -> Array:
        rows = project(weights, f"attn.{name}_proj", x)
        if family["clip_qkv"] is not None:
            rows = np.clip(rows, -family["clip_qkv"], family["clip_qkv"])
        normed = config["qk_norm"] and name != "v"
        if normed and family["wide_qk_norm"]:
            rows = norm(weights, f"attn.{name}_norm", rows, config)
        rows = rows.reshape(seq, count, head_dim).transpose(1, 0, 2)
        if normed and family["per_head_qk_norm"]:
            nothing = np.zeros(head_dim)
            of_heads = [weights[f"attn.{name}_norm.weights.{head}"] for head in range(count)]
            rows = np.stack([layer_norm(r, w, nothing, config["eps"]) for r, w in zip(rows, of_heads, strict=True)])
        elif normed and not family["wide_qk_norm"]:
            rows = norm(weights, f"attn.{name}_norm", rows, config)
        if name == "v" or family["learned_positions"] or (family["rotated"] and not family["rotated"][layer]):
            return rows
        return turned(rows, positions, window, config)

    q, k, v = (heads(name, config["num_heads" if name == "q" else "num_kv_heads"]) for name in "qkv")
    scale, cap = family["attention_scale"] or head_dim**-0.5, family["attention_softcap"]
    scale = scale / (layer + 1) if family["attention_scale_by_layer"] else scale
    allowed = may_attend(seq, seq, causal=True, window=window) & together
    if cap is None:
        attended = attention(q * scale * math.sqrt(head_dim), k, v, allowed)
    else:
        attended = capped_attention(q, k, v, allowed, scale, cap)
    return project(weights, "attn.o_proj", attended.transpose(1, 0, 2).reshape(seq, -1))


def capped_attention(q: Array, k: Array, v: Array, allowed: NDArray[np.bool_], scale: float, cap: float) -> Array:
    """Attention with cap * tanh(scores / cap), a head and a query at a time."""
    out = np.zeros((*q.shape[:2], v.shape[-1]))
    for head in range(len(q)):
        group = head * len(k) // len(q)
        for query in range(q.shape[1]):
            seen = allowed[query]
            if seen.any():
                scores = cap * np.tanh(k[group][seen] @ q[head, query] * scale / cap)
                shares = np.exp(scores - scores.max())
                out[head, query] = shares / shares.sum() @ v[group][seen]
    return out


def turned(x: Array, positions: Places, window: int | None, config: Mapping[str, Any]) -> Array:
    """The first rotary_dim features of each head, turned pair by pair; layers with a window may have their own base."""
    family = config["family"]
    theta, scaling = config["rope_theta"], config["rope_scaling"]
    if window is not None and family["window_rope_theta"] is not None:
        theta, scaling = family["window_rope_theta"], family["window_rope_scaling"]
    width, out = family["rotary_dim"] or config["head_dim"], x.copy()
    for pair in range(width // 2):
        a, b = (2 * pair, 2 * pair + 1) if config["rope_interleaved"] else (pair, pair + width // 2)
        turn = length(scaling) * np.exp(1j * positions * frequency(pair, width, theta, scaling))
        number = (x[..., a] + 1j * x[..., b]) * turn
        out[..., a], out[..., b] = number.real, number.imag
    return out


def frequency(pair: int, width: int, theta: float, scaling: Mapping[str, Any] | None) -> float:
    """Radians a token of one pair. yarn: Peng et al. 2023, section 3.2, with the bounds of pairs of their code."""
    if scaling is None or scaling["kind"] != "yarn":
        return plain_frequency(pair, width, theta, scaling)

    def bound(turns: float) -> float:
        return width * math.log(scaling["original_max_seq_len"] / (2 * math.pi * turns)) / (2 * math.log(theta))

    low = max(0, math.floor(bound(scaling["beta_fast"])))
    high = min(width - 1, math.ceil(bound(scaling["beta_slow"])))
    share = min(1.0, max(0.0, (pair - low) / (high - low)))
    plain = plain_frequency(pair, width, theta)
    return plain * (1 - share) + plain / float(scaling["factor"]) * share


def length(scaling: Mapping[str, Any] | None) -> float:
    """What turned pairs are lengthened by: Peng et al. 2023, equation 22, of which queries and keys have the root."""
    return 1.0 if scaling is None or scaling["kind"] != "yarn" else 0.1 * math.log(scaling["factor"]) + 1


def feed_forward(weights: Weights, x: Array, *others: Any) -> Array:
    """The feed-forward, with a gate or without, and with biases where there are some."""
    activation = ACTIVATIONS[others[-1]["family"]["activation"]]
    if not others[-1]["family"]["gated"]:
        return project(weights, "ffn.down_proj", activation(project(weights, "ffn.up_proj", x)))
    return project(
        weights, "ffn.down_proj", activation(project(weights, "ffn.gate_proj", x)) * project(weights, "ffn.up_proj", x)
    )


def norm(weights: Weights, name: str, x: Array, config: Mapping[str, Any]) -> Array:
    """The norm of that name."""
    if config["family"]["norm"] != "rms":
        nothing = np.full(x.shape[-1], 0.0 if config["family"]["one_plus_norms"] else 1.0)
        weight = weights.get(f"{name}.weight", nothing) + float(config["family"]["one_plus_norms"])
        return layer_norm(x, weight, weights.get(f"{name}.bias", np.zeros(x.shape[-1])), config["eps"])
    return rms_norm(x, weights[f"{name}.weight"] + float(config["family"]["one_plus_norms"]), config["eps"])


def capped(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap)."""
    return x if cap is None else cap * np.tanh(x / cap)
