"""What costs are computed from: the sizes of a model's matrices, and which of the usual parts it has."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..config import ModelConfig
from ..family import Activation, Family

QKNorm = Literal["", "shared", "wide", "per_head"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A decoder-only model, prenorm's or another. The defaults are the parts of `TransformerBlock`."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int
    windows: tuple[int | None, ...] = ()
    """The window of each layer. Default: none in any."""

    rotated: tuple[bool, ...] = ()
    """Whether each layer rotates queries and keys. Default: every layer does, unless positions are learned."""

    rotary_dim: int | None = None
    """Features of a head that are rotated. Default: all."""

    qk_norm: QKNorm = ""
    """Norms of queries and keys: over each head, over all heads together, or over each head with its own weights."""

    qkv_bias: bool = False
    o_bias: bool = False
    tie_embeddings: bool = False
    dropout: float = 0.0

    gated: bool = True
    """The feed-forward has a gate, and three matrices; otherwise two."""

    activation: Activation = "silu"
    """What the gate goes through, or what stands between two matrices."""

    ffn_bias: bool = False
    """Biases of the feed-forward matrices."""

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""

    norm_vectors: int = 1
    """Vectors that a norm has: a weight, and a bias."""

    norms: int = 2
    """Norms of a block, those of queries and keys aside."""

    learned_positions: bool = False
    """A learned vector for each of max_seq_len positions, instead of rotary positions."""

    parallel: bool = False
    """Attention and feed-forward read the same, side by side."""

    pre_norm: bool = True
    """Each sublayer reads what a norm gives, and not the residual path itself."""

    post_norm: bool = False
    """A norm follows the last product of each sublayer."""

    one_plus_norms: bool = False
    """Norms multiply by 1 + weight, which they work out in every call."""

    clip_qkv: bool = False
    """Queries, keys and values are clipped."""

    attention_softcap: bool = False
    """Scores go through a tanh."""

    logit_divisor: bool = False
    """Logits are divided by a number."""

    logit_softcap: bool = False
    """Logits go through a tanh."""

    uncounted: tuple[str, ...] = ()
    """Parts for which nobody has counted what training saves: fields of config.family."""

    one_device: tuple[str, ...] = ()
    """Parts for which that is counted on one device alone: fields of config.family."""

    is_ours: bool = False
    """Whether it is a TransformerLM, for which kernels of ours may run."""

    @property
    def query_width(self) -> int:
        """The total width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """The total width of all key heads, which is also that of the value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The window of each layer, None for none."""
        return self.windows or (None,) * self.num_layers

    @property
    def layers_rotated(self) -> tuple[bool, ...]:
        """Whether each layer rotates queries and keys."""
        return self.rotated or (not self.learned_positions,) * self.num_layers

    @property
    def finishes_logits(self) -> bool:
        """Whether the logits are more than the head's product."""
        return self.logit_divisor or self.logit_softcap

    @property
    def rotated_features(self) -> int:
        """Features of a head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture of a TransformerLM."""
    family = config.family or Family()
    sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len")
    switches = ("qkv_bias", "o_bias", "tie_embeddings", "dropout")
    of_family = ("rotary_dim", "gated", "activation", "ffn_bias", "learned_positions", "rotated")
    windows = family.windows or (config.window,) * config.num_layers
    return Architecture(
        **{name: getattr(config, name) for name in (*sizes, *switches)},
        **{name: getattr(family, name) for name in of_family},
        windows=tuple(window or None for window in windows),
        qk_norm=_qk_norm(family) if config.qk_norm else "",
        norm="rms" if family.norm == "rms" else "layer",
        norm_vectors={"layer": 2, "layer_bare": 0}.get(family.norm, 1),
        norms={"sandwich": 4, "parallel": 1}.get(family.residual, 2),
        parallel=family.residual in ("parallel", "parallel_two_norms"),
        pre_norm=family.residual != "post",
        post_norm=family.residual in ("post", "sandwich"),
        one_plus_norms=family.one_plus_norms and family.norm != "layer_bare",
        clip_qkv=family.clip_qkv is not None,
        attention_softcap=family.attention_softcap is not None,
        logit_divisor=family.logit_divisor != 1,
        logit_softcap=family.logit_softcap is not None,
        uncounted=tuple(name for name in _set_in(family) if name not in (*_COUNTED, *_ONE_DEVICE)),
        one_device=tuple(_on_one_device(config, family)),
        is_ours=True,
    )


def _qk_norm(family: Family) -> QKNorm:
    if family.per_head_qk_norm:
        return "per_head"
    return "wide" if family.wide_qk_norm else "shared"


# Fields of a family's record for which activations.py has an account; some of them costs/cluster does not have.
_COUNTED = (
    *("residual", "norm", "activation", "ffn_bias", "gated", "learned_positions", "rotary_dim", "windows", "rotated"),
    *("window_rope_theta", "window_rope_scaling", "attention_scale", "attention_scale_by_layer", "residual_scale"),
    "embedding_scale",
)
_ONE_DEVICE = (
    *("one_plus_norms", "wide_qk_norm", "per_head_qk_norm", "clip_qkv", "attention_softcap", "logit_divisor"),
    "logit_softcap",
)


def _set_in(family: Family) -> Iterator[str]:
    """The fields that are not at their defaults."""
    return (one.name for one in dataclasses.fields(Family) if getattr(family, one.name) != one.default)


def _on_one_device(config: ModelConfig, family: Family) -> Iterator[str]:
    if family.residual in ("post", "sandwich"):
        yield "residual"
    yield from (name for name in _set_in(family) if name in _ONE_DEVICE)
    if config.qk_norm and family.norm != "rms" and not family.per_head_qk_norm:
        yield "qk_norm"
