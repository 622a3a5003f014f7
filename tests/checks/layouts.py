"""Where the styles of the corpus keep their weights, and the block that all of them should compute, in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Conventions:
    """What is free in a right block."""

    interleaved: bool = False
    causal: bool = False
    sign: int = 1  # of the rotation
    tiled: bool = False  # query head h reads key-value head h mod num_kv_heads
    qk_norm: bool = False
    eps: float = 1e-6
    theta: float = 10000.0
    heads: int = 4
    kv_heads: int = 4


@dataclass(frozen=True)
class Weights:
    """Matrices are (out, in), heads one after the other."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    norm1: Tensor
    norm2: Tensor
    biases: Named = field(default_factory=dict)
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


def block(x: Tensor, w: Weights, c: Conventions, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """One sequence or many, x (..., seq, d_model); positions (seq,) or (..., seq); mask (seq, seq), True = may attend."""
    h = x + attention(rms_norm(x, w.norm1, c.eps), w, c, positions, mask)
    n = rms_norm(h, w.norm2, c.eps)
    gate = n @ w.gate.T
    return h + (gate / (1 + torch.exp(-gate)) * (n @ w.up.T)) @ w.down.T


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zhang and Sennrich 2019, equation 4."""
    return weight * x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()


def attention(x: Tensor, w: Weights, c: Conventions, positions: Tensor | None, mask: Tensor | None) -> Tensor:
    """A head at a time."""
    seq, size = x.shape[-2], w.q.shape[0] // c.heads
    positions = torch.arange(seq) if positions is None else positions
    allowed = torch.ones(seq, seq, dtype=torch.bool) if mask is None else mask
    if c.causal:
        allowed = allowed & torch.ones(seq, seq, dtype=torch.bool).tril()
    q, k, v = (x @ getattr(w, name).T + w.biases.get(name, 0.0) for name in "qkv")
    mixed = []
    for head in range(c.heads):
        other = head % c.kv_heads if c.tiled else head // (c.heads // c.kv_heads)
        one_q, one_k, one_v = (t[..., at * size : (at + 1) * size] for t, at in ((q, head), (k, other), (v, other)))
        if w.q_norm is not None and w.k_norm is not None:
            one_q, one_k = rms_norm(one_q, w.q_norm, c.eps), rms_norm(one_k, w.k_norm, c.eps)
        scores = turned(one_q, positions, c) @ turned(one_k, positions, c).mT / math.sqrt(size)
        mixed.append(torch.where(allowed, scores, -math.inf).softmax(-1) @ one_v)
    return torch.cat(mixed, -1) @ w.o.T + w.biases.get("o", 0.0)


def turned(x: Tensor, positions: Tensor, c: Conventions) -> Tensor:
    """Every pair of features is a complex number, multiplied by e^(i position frequency)."""
    half = x.shape[-1] // 2
    real, imaginary = (x[..., ::2], x[..., 1::2]) if c.interleaved else (x[..., :half], x[..., half:])
    frequencies = c.theta ** (-2 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    angles = c.sign * positions.to(torch.float64)[..., None] * frequencies
    number = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    parts = (number.real, number.imag)
    return torch.stack(parts, -1).flatten(-2) if c.interleaved else torch.cat(parts, -1)


# Each style's parameters as `Weights`.


def _named(names: str, transpose: bool = False) -> Callable[[Named, Conventions], Weights]:
    """A style whose matrices have these names, in the order q k v o gate up down norm1 norm2."""

    def weights(p: Named, c: Conventions) -> Weights:
        found = [p[name] for name in names.split()]
        return Weights(*((t.T if transpose and t.ndim == 2 else t) for t in found))

    return weights


def _nanogpt(p: Named, c: Conventions) -> Weights:
    q, k, v = p["attn.c_attn.weight"].chunk(3)
    gate, up = p["mlp.c_fc.weight"].chunk(2)
    return Weights(
        q, k, v, p["attn.c_proj.weight"], gate, up, p["mlp.c_proj.weight"], p["ln_1.weight"], p["ln_2.weight"]
    )


def _einsums(p: Named, c: Conventions) -> Weights:
    def inward(t: Tensor) -> Tensor:  # (d_model, heads, head_dim), or (heads, head_dim, d_model)
        return t.flatten(1).T if t.shape[1] == c.heads else t.flatten(0, 1)

    q, k, v = inward(p["Wq"]), inward(p["Wk"]), inward(p["Wv"])
    o = p["Wo"].flatten(0, 1).T
    return Weights(q, k, v, o, p["Wgate"].T, p["Wup"].T, p["Wdown"].T, p["gain_a"], p["gain_f"])


def _per_head(p: Named, c: Conventions) -> Weights:
    def joined(name: str) -> Tensor:
        return torch.cat([p[f"sa.heads.{head}.{name}.weight"] for head in range(c.heads)])

    feed = (p["ffwd.gate.weight"], p["ffwd.up.weight"], p["ffwd.down.weight"])
    return Weights(
        joined("query"), joined("key"), joined("value"), p["sa.proj.weight"], *feed, p["norm1.g"], p["norm2.g"]
    )


LAYOUTS: dict[str, Callable[[Named, Conventions], Weights]] = {
    "course": _named(
        "attn.q_proj.weight attn.k_proj.weight attn.v_proj.weight attn.output_proj.weight "
        "ffn.w1.weight ffn.w3.weight ffn.w2.weight ln1.gain ln2.gain"
    ),
    "meta": _named(
        "attention.wq.weight attention.wk.weight attention.wv.weight attention.wo.weight feed_forward.w1.weight "
        "feed_forward.w3.weight feed_forward.w2.weight attention_norm.weight ffn_norm.weight"
    ),
    "huggingface": _named(
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight "
        "post_attention_layernorm.weight"
    ),
    "nanogpt": _nanogpt,
    "bare": _named("query key value output gate up down scale_attention scale_mlp", transpose=True),
    "einsums": _einsums,
    "per_head": _per_head,
    "torch_modules": _named(
        "attn.to_q.weight attn.to_k.weight attn.to_v.weight attn.to_out.weight mlp.gate.weight mlp.up.weight "
        "mlp.down.weight attn_norm.weight mlp_norm.weight"
    ),
}

STYLES: dict[str, Conventions] = {
    "course": Conventions(interleaved=True, causal=True, eps=1e-5),
    "meta": Conventions(interleaved=True, causal=True, eps=1e-5),
    "huggingface": Conventions(),
    "nanogpt": Conventions(causal=True),
    "bare": Conventions(interleaved=True),
    "einsums": Conventions(),
    "per_head": Conventions(interleaved=True, causal=True),
    "torch_modules": Conventions(),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "both_ways": {"causal": False},
    "causal": {"causal": True},
    "half_split": {"interleaved": False},
    "interleaved": {"interleaved": True},
    "turning_back": {"sign": -1},
}


def conventions(right_name: str) -> Conventions:
    """Those of a right block of the corpus, by its name."""
    style, _, variant = right_name.partition("/right")
    return replace(STYLES[style], **VARIANTS.get(variant.removeprefix("_"), {}))


def weights(right_name: str, parameters: Named) -> Weights:
    """Those of a right block of the corpus."""
    style, _, variant = right_name.partition("/right")
    found = LAYOUTS[style](parameters, STYLES[style])
    if variant == "_up_before_gate":
        found = replace(found, gate=found.up, up=found.gate)
    return found
