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
    norm_offset: float = 0.0  # added to the norms' weights
    tiled: bool = False  # query head h reads key-value head h mod num_kv_heads
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
    """One sequence or many, x (..., seq, d_model); positions (seq,) or (..., seq); mask (seq, seq)."""
    h = x + attention(rms_norm(x, w.norm1, c.eps), w, c, positions, mask)
    n = rms_norm(h, w.norm2, c.eps)
    gate, up = n @ w.gate.T + w.biases.get("gate", 0.0), n @ w.up.T + w.biases.get("up", 0.0)
    return h + (gate / (1 + torch.exp(-gate)) * up) @ w.down.T


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


def _grouped(p: Named, c: Conventions) -> Weights:
    k, v = p["attention.kv.weight"].chunk(2)
    gate, up = p["gate_up.weight"].chunk(2)
    return Weights(
        p["attention.q.weight"],
        k,
        v,
        p["attention.o.weight"],
        gate,
        up,
        p["down.weight"],
        p["pre_attention.weight"],
        p["pre_mlp.weight"],
    )


def _neox(p: Named, c: Conventions) -> Weights:
    q, k, v = (one.flatten(0, 1) for one in p["query_key_value.weight"].unflatten(0, (c.heads, 3, -1)).unbind(1))
    feed = (p[f"dense_{name}.weight"] for name in ("gate_to_4h", "h_to_4h", "4h_to_h"))
    return Weights(q, k, v, p["dense.weight"], *feed, p["input_layernorm.scale"], p["post_attention_layernorm.scale"])


def _jax_port(p: Named, c: Conventions) -> Weights:
    attention = (p[f"attention.{name}.kernel"].T for name in ("query", "key", "value", "out"))
    feed = (p[f"mlp.{name}.kernel"].T for name in ("wi_0", "wi_1", "wo"))
    norms = (1 + p[f"{name}.scale"] for name in ("pre_attention_layer_norm", "pre_mlp_layer_norm"))
    return Weights(*attention, *feed, *norms)


def _terse(p: Named, c: Conventions) -> Weights:
    return Weights(*p["a"].flatten(1, 2), p["b"], *p["c"], p["d"], *p["g"])


def _factory(p: Named, c: Conventions) -> Weights:
    attention = (p[f"stages.0.sublayer.{name}.weight"] for name in ("query", "key", "value", "mix"))
    feed = (p[f"stages.1.sublayer.{name}.weight"] for name in ("gate", "value", "contract"))
    return Weights(*attention, *feed, p["stages.0.norm.gamma"], p["stages.1.norm.gamma"])


def _lazy(p: Named, c: Conventions) -> Weights:
    feed = (p[f"{name}.weight"] for name in ("w_gate", "w_in", "w_out"))
    return Weights(
        *p["attention.qkv.weight"].chunk(3), p["attention.out.weight"], *feed, p["rms_a.alpha"], p["rms_b.alpha"]
    )


def _hugging_face(prefix: str) -> Callable[[Named, Conventions], Weights]:
    """Separate or fused projections, with biases and norms of queries and keys where they have them."""

    def weights(p: Named, c: Conventions) -> Weights:
        p = {name.removeprefix(prefix): value for name, value in p.items()}
        if "self_attn.qkv_proj.weight" in p:
            kv = c.kv_heads * (p["input_layernorm.weight"].numel() // c.heads)
            qkv = p["self_attn.qkv_proj.weight"].split((c.heads * kv // c.kv_heads, kv, kv))
            gate, up = p["mlp.gate_up_proj.weight"].chunk(2)
        else:
            qkv = tuple(p[f"self_attn.{name}_proj.weight"] for name in "qkv")
            gate, up = p["mlp.gate_proj.weight"], p["mlp.up_proj.weight"]
        biases = {name: p[f"self_attn.{name}_proj.bias"] for name in "qkv" if f"self_attn.{name}_proj.bias" in p}
        return Weights(
            *qkv,
            p["self_attn.o_proj.weight"],
            gate,
            up,
            p["mlp.down_proj.weight"],
            p["input_layernorm.weight"],
            p["post_attention_layernorm.weight"],
            biases,
            p.get("self_attn.q_norm.weight"),
            p.get("self_attn.k_norm.weight"),
        )

    return weights


def _prenorm(p: Named, c: Conventions) -> Weights:
    renamed = {"attn": "self_attn", "ffn": "mlp", "norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    return _hugging_face("")(
        {".".join([renamed[name.split(".")[0]], *name.split(".")[1:]]): value for name, value in p.items()}, c
    )


def _x_transformers(p: Named, c: Conventions) -> Weights:
    attention = (p[f"layers.layers.0.1.to_{name}.weight"] for name in ("q", "k", "v", "out"))
    up, gate = p["layers.layers.1.1.ff.0.proj.weight"].chunk(2)
    up_bias, gate_bias = p["layers.layers.1.1.ff.0.proj.bias"].chunk(2)
    norms = (c.norm_offset + p[f"layers.layers.{place}.0.0.g"] for place in (0, 1))
    down = p["layers.layers.1.1.ff.2.weight"]
    return Weights(*attention, gate, up, down, *norms, {"gate": gate_bias, "up": up_bias})


def _litgpt(p: Named, c: Conventions) -> Weights:
    size = p["block.norm_1.weight"].numel() // c.heads
    kv = c.kv_heads * size
    return Weights(
        *p["block.attn.qkv.weight"].split((c.heads * size, kv, kv)),
        p["block.attn.proj.weight"],
        p["block.mlp.fc_1.weight"],
        p["block.mlp.fc_2.weight"],
        p["block.mlp.proj.weight"],
        p["block.norm_1.weight"],
        p["block.norm_2.weight"],
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
    "functional": _named(
        "params.wq params.wk params.wv params.wo params.gate params.up params.down "
        "params.norm_attention params.norm_mlp"
    ),
    "grouped": _grouped,
    "qwen": _hugging_face(""),
    "neox": _neox,
    "jax_port": _jax_port,
    "terse": _terse,
    "factory": _factory,
    "lazy": _lazy,
    "prenorm": _prenorm,
    "transformers": _hugging_face("layer."),
    "x_transformers": _x_transformers,
    "litgpt": _litgpt,
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
    "functional": Conventions(interleaved=True, sign=-1),
    "grouped": Conventions(causal=True, kv_heads=2),
    "qwen": Conventions(causal=True, kv_heads=2),
    "neox": Conventions(eps=1e-5),
    "jax_port": Conventions(interleaved=True),
    "terse": Conventions(),
    "factory": Conventions(interleaved=True, causal=True, eps=1e-5, kv_heads=2),
    "lazy": Conventions(causal=True, sign=-1),
    "prenorm": Conventions(interleaved=True),
    "transformers": Conventions(causal=True, kv_heads=2),
    "x_transformers": Conventions(interleaved=True, tiled=True, eps=0.0, kv_heads=2),
    "litgpt": Conventions(causal=True, kv_heads=2),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "both_ways": {"causal": False},
    "causal": {"causal": True},
    "half_split": {"interleaved": False},
    "half_split_causal": {"interleaved": False, "causal": True},
    "half_split_both_ways": {"interleaved": False, "causal": False},
    "half_split_tiled": {"interleaved": False, "tiled": True},
    "interleaved": {"interleaved": True},
    "tiled": {"tiled": True},
    "turning_back": {"sign": -1},
    "turning_forward": {"sign": 1},
    "turning_forward_causal": {"sign": 1, "causal": True},
    "turning_forward_both_ways": {"sign": 1, "causal": False},
    "grouped": {"kv_heads": 2},
    "dropout": {"causal": True},
    "qk_norm_and_bias": {"interleaved": False},
    "llama_both_ways": {"causal": False},
    "helium": {"interleaved": True},
    "decoder": {"causal": True, "norm_offset": 1.0},
}


def conventions(right_name: str) -> Conventions:
    """Those of a right block of the corpus, by its name."""
    style, _, variant = right_name.partition("/right")
    return replace(STYLES[style], **VARIANTS.get(variant.removeprefix("_"), {}))


def weights(right_name: str, parameters: Named) -> Weights:
    """Those of a right block of the corpus."""
    style, _, variant = right_name.partition("/right")
    found = LAYOUTS[style](parameters, conventions(right_name))
    match variant:
        case "_up_before_gate":
            found = replace(found, gate=found.up, up=found.gate)
        case "_size_three_last":  # (heads, head_dim, 3)
            heads = STYLES[style].heads
            fused = parameters["query_key_value.weight"].unflatten(0, (heads, -1, 3))
            q, k, v = (one.flatten(0, 1) for one in fused.unbind(2))
            found = replace(found, q=q, k=k, v=v)
        case "_gemma":
            found = replace(found, norm1=1 + found.norm1, norm2=1 + found.norm2)
    return found
