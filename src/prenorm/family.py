"""What a model family has beyond the standard block, in one record; the defaults add nothing."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import ConfigError
from .rope_scaling import RopeScaling
from .validation import IN_PYTHON, Spelling, check_flag, check_number, check_size, record_from

Residual = Literal["pre", "post", "sandwich", "parallel", "parallel_two_norms"]
Norm = Literal["rms", "layer", "layer_scale", "layer_bare"]
Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "sigmoid", "tanh"]


MOST_HEADS = 2**10  # with tensors of their own
_FLAGS = (
    *("ffn_bias", "gated", "one_plus_norms", "wide_qk_norm", "per_head_qk_norm", "learned_positions"),
    "attention_scale_by_layer",
)


@dataclass(frozen=True, slots=True)
class Family:
    """What the layers of a family have beyond the standard block. `checkpoint/families/` reads it from a folder.

    Raises ConfigError for invalid values.
    """

    residual: Residual = "pre"
    """Where norms stand: before a sublayer, after it (OLMo 2), on both sides (Gemma 2), or before attention and
    feed-forward side by side: one for both (Command R), or one for each (GPT-NeoX). Never on the residual path."""

    norm: Norm = "rms"
    """RMSNorm, or LayerNorm with weight and bias, with a weight only, or with neither (OLMo)."""

    activation: Activation = "silu"
    """The activation of the feed-forward's gate, or between its two matrices."""

    ffn_bias: bool = False
    """Biases of the projections of the feed-forward."""

    gated: bool = True
    """Whether the feed-forward has a gate, and so three matrices; otherwise two with the activation between."""

    one_plus_norms: bool = False
    """Norms multiply by 1 + weight (Gemma)."""

    wide_qk_norm: bool = False
    """Normalise queries and keys over all heads together (OLMo 2), not over each head."""

    per_head_qk_norm: bool = False
    """The norms of queries and keys are LayerNorms over each head, with a weight for each and no bias (Command R)."""

    learned_positions: bool = False
    """A learned vector for each of max_seq_len places is added to the embeddings, and nothing is rotated (GPT-2)."""

    rotary_dim: int | None = None
    """How many of a head's features, from the first, are rotated. Default: all."""

    windows: Any = ()
    """A tuple: the window of each layer, 0 for none. Default: the config's, in every layer."""

    rotated: Any = ()
    """A tuple: whether each layer rotates queries and keys. Default: every layer does."""

    window_rope_theta: float | None = None
    """Base of the rotary frequencies in layers with a window. Default: the base and scaling of the other layers."""

    window_rope_scaling: RopeScaling | None = None
    """How rotary frequencies are scaled in layers with a window; needs window_rope_theta."""

    clip_qkv: float | None = None
    """Queries, keys and values are clipped to plus or minus this value (OLMo)."""

    attention_scale: float | None = None
    """Scores are multiplied by this. Default: 1 / sqrt(head_dim)."""

    attention_scale_by_layer: bool = False
    """Scores of the n-th layer, counted from 1, are divided by n as well (some GPT-2)."""

    attention_softcap: float | None = None
    """Scores become softcap * tanh(scores / softcap) before the softmax."""

    residual_scale: float = 1.0
    """The outputs of attention and feed-forward are multiplied by this."""

    embedding_scale: float = 1.0
    """Embeddings are multiplied by this."""

    logit_divisor: float = 1.0
    """Logits are divided by this."""

    logit_softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""

    def __post_init__(self) -> None:
        for name in ("windows", "rotated"):  # JSON and TOML have lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> "Family":
        """The record that `to_dict` wrote. Raises ConfigError for unknown fields and invalid values."""
        scaling = fields.get("window_rope_scaling") if isinstance(fields, dict) else None
        if isinstance(scaling, dict):
            fields = {**fields, "window_rope_scaling": record_from(RopeScaling, "window_rope_scaling", scaling)}
        record: Family = record_from(cls, "family", fields)
        return record


def check_family(
    family: Any,
    *,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    window: int | None,
    qk_norm: bool,
    spelling: Spelling = IN_PYTHON,
) -> None:
    """Raise ConfigError unless a model of these sizes may have this record. `spelling`: their names in messages."""
    if not isinstance(family, Family):
        raise ConfigError(f"family must be a Family record or None, not {family!r}.")
    for name in ("windows", "rotated"):
        given = getattr(family, name)
        if given and len(given) != num_layers:
            raise ConfigError(f"family.{name} must have one entry for each of {num_layers} layers, not {len(given)}.")
    if family.windows and window is not None:
        raise ConfigError(
            f"with family.windows, which gives the window of each layer, window must be None, not {window}."
        )
    if family.rotary_dim is not None and family.rotary_dim > head_dim:
        raise ConfigError(
            f"family.rotary_dim must be at most head_dim, but {family.rotary_dim} is more than {head_dim}."
        )
    for name in ("wide_qk_norm", "per_head_qk_norm"):
        if getattr(family, name) and not qk_norm:
            raise ConfigError(f"family.{name} says how queries and keys are normed, so it needs qk_norm=True.")
    if family.per_head_qk_norm and num_heads > MOST_HEADS:
        raise ConfigError(
            f"{spelling.name('num_heads')} must be at most {MOST_HEADS} where each head has norms of its own, not "
            f"{num_heads}."
        )


def _check_fields(family: Family) -> None:
    for name, choices in (("residual", Residual), ("norm", Norm), ("activation", Activation)):
        if getattr(family, name) not in get_args(choices):
            raise ConfigError(
                f"family.{name} must be one of {', '.join(get_args(choices))}, not {getattr(family, name)!r}."
            )
    for name in _FLAGS:
        check_flag(f"family.{name}", getattr(family, name))
    _check_together(family)
    if family.rotary_dim is not None:
        check_size("family.rotary_dim", family.rotary_dim, at_least=2)
        if family.rotary_dim % 2:
            raise ConfigError(f"family.rotary_dim must be even, because pairs are rotated, not {family.rotary_dim}.")
    for name in ("windows", "rotated"):
        if not isinstance(getattr(family, name), tuple):
            raise ConfigError(f"family.{name} must be a tuple with one entry per layer, not {getattr(family, name)!r}.")
    for window in family.windows:
        check_size("each of family.windows", window, at_least=0)
    for rotated in family.rotated:
        check_flag("each of family.rotated", rotated)
    optional = ("window_rope_theta", "clip_qkv", "attention_scale", "attention_softcap", "logit_softcap")
    given = [name for name in optional if getattr(family, name) is not None]
    for name in (*given, "residual_scale", "embedding_scale", "logit_divisor"):
        check_number(f"family.{name}", getattr(family, name), above=0.0)
    scaling = family.window_rope_scaling
    if scaling is not None and not isinstance(scaling, RopeScaling):
        raise ConfigError(f"family.window_rope_scaling must be a RopeScaling record or None, not {scaling!r}.")
    if scaling is not None and family.window_rope_theta is None:
        raise ConfigError("family.window_rope_scaling needs family.window_rope_theta, the base that it stretches.")


def _check_together(family: Family) -> None:
    if family.per_head_qk_norm and (family.wide_qk_norm or family.norm == "rms" or family.one_plus_norms):
        raise ConfigError(
            "family.per_head_qk_norm is a LayerNorm that multiplies by its weight, so it needs family.norm 'layer', "
            "'layer_scale' or 'layer_bare', without family.wide_qk_norm or family.one_plus_norms."
        )
    rotary = ("rotary_dim", "rotated", "window_rope_theta")
    if family.learned_positions and (said := [name for name in rotary if getattr(family, name)]):
        raise ConfigError(f"family.learned_positions rotates nothing, so family.{said[0]} must be left out.")
