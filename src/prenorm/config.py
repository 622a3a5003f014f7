"""Model configs: the sizes and switches of a model, validated once, with a lossless round trip to JSON."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError
from .family import Family, check_family
from .published import published_fields
from .rope_scaling import RopeScaling as RopeScaling
from .rope_scaling import check_rotated
from .validation import (
    IN_PYTHON,
    Spelling,
    attention_sizes,
    check_dropout,
    check_flag,
    check_number,
    check_size,
    record_from,
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a TransformerLM. Sizes left as None are filled in, so that every size is a number afterwards.

    Raises ConfigError for invalid values.
    """

    vocab_size: int
    """Tokens in the vocabulary."""

    d_model: int
    """Width of the residual path."""

    num_layers: int
    """Number of blocks."""

    num_heads: int
    """Query heads in each block."""

    num_kv_heads: Any = None
    """Key and value heads in each block. Default: num_heads."""

    head_dim: Any = None
    """Width of a head. Default: d_model / num_heads."""

    d_ff: Any = None
    """Width of the feed-forward layer. Default: 8/3 d_model, rounded up to a multiple of 64."""

    max_seq_len: int = 2048
    """Maximum number of tokens in a sequence."""

    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""

    rope_interleaved: bool = False
    """Rotate pairs (2i, 2i+1) instead of (i, i + head_dim/2)."""

    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are scaled for long contexts. Default: not at all."""

    eps: float = 1e-6
    """Added to the mean of squares in the norms."""

    window: int | None = None
    """Number of positions that a query attends to, its own included. Default: all up to its own."""

    qk_norm: bool = False
    """Normalise queries and keys before the rotation."""

    qkv_bias: bool = False
    """Biases of the query, key and value projections."""

    o_bias: bool = False
    """Bias of the attention's output projection."""

    tie_embeddings: bool = False
    """Use the embedding's weight as the head."""

    dropout: float = 0.0
    """Dropout probability for attention weights and the outputs of attention and feed-forward, in training."""

    family: Family | None = None
    """What a model family has beyond these fields. Default: nothing."""

    def __post_init__(self) -> None:
        for name, size in check_model(_fields_of(self)).items():
            object.__setattr__(self, name, size)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts: `ModelConfig.from_dict` gives the same config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The config that `to_dict` wrote. Raises ConfigError for fields that no config has."""
        scaling = fields.get("rope_scaling")
        if isinstance(scaling, dict):
            fields = {**fields, "rope_scaling": record_from(RopeScaling, "rope_scaling", scaling)}
        family = fields.get("family")
        if isinstance(family, dict):
            fields = {**fields, "family": Family.from_dict(family)}
        return record_from(cls, "a model config", fields)

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """The config of a published model, such as "llama-3-8b". Raises ConfigError for other names."""
        return cls.from_dict(published_fields(name))


@dataclass(frozen=True, slots=True)
class EncoderDecoderConfig:
    """The shape of an EncoderDecoder. Sizes left as None are filled in, so that every size is a number afterwards.

    Raises ConfigError for invalid values.
    """

    vocab_size: int
    """Tokens in the vocabulary of the source, and of the target unless it has its own."""

    d_model: int
    """Width of the residual paths."""

    num_layers: int
    """Blocks in the encoder."""

    num_heads: int
    """Heads in each attention."""

    num_decoder_layers: Any = None
    """Blocks in the decoder. Default: num_layers."""

    d_ff: Any = None
    """Width of the feed-forward layers. Default: 4 d_model."""

    target_vocab_size: Any = None
    """Tokens in the vocabulary of the target. Default: vocab_size."""

    max_seq_len: int = 512
    """Maximum number of tokens in a source, and in a target."""

    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Position embeddings: fixed sines and cosines, or a learned vector per position."""

    start_token_id: int = 0
    """The target token that `generate` starts with."""

    eps: float = 1e-5
    """Added to the variance in the norms."""

    tie_embeddings: bool = True
    """Share one matrix between the source embedding, the target embedding and the head."""

    dropout: float = 0.1
    """Dropout probability for embeddings, attention weights, hidden values and sublayer outputs, in training."""

    def __post_init__(self) -> None:
        for name, size in check_encoder_decoder(_fields_of(self)).items():
            object.__setattr__(self, name, size)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: `EncoderDecoderConfig.from_dict` gives the same config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "EncoderDecoderConfig":
        """The config that `to_dict` wrote. Raises ConfigError for fields that no config has."""
        return record_from(cls, "an encoder-decoder config", fields)


def check_model(fields: Mapping[str, Any], spelling: Spelling = IN_PYTHON) -> dict[str, int]:
    """The sizes that a ModelConfig with these fields fills in: num_kv_heads, head_dim and d_ff.

    Raises ConfigError for invalid fields. `spelling`: how messages spell names and values.
    """
    for name in ("vocab_size", "d_model", "num_layers", "num_heads", "max_seq_len"):
        check_size(name, fields[name], spelling=spelling)
    heads = (fields[name] for name in ("d_model", "num_heads", "num_kv_heads", "head_dim"))
    family = fields["family"]
    rotary = not isinstance(family, Family) or not family.learned_positions
    num_kv_heads, head_dim = attention_sizes(*heads, rotary=rotary, spelling=spelling)
    d_ff = default_d_ff(fields["d_model"]) if fields["d_ff"] is None else fields["d_ff"]
    check_size("d_ff", d_ff, spelling=spelling)
    check_number("rope_theta", fields["rope_theta"], above=0.0, spelling=spelling)
    check_number("eps", fields["eps"], above=0.0, spelling=spelling)
    check_dropout(fields["dropout"], spelling=spelling)
    if fields["window"] is not None:
        check_size("window", fields["window"], spelling=spelling)
    scaling = fields["rope_scaling"]
    if scaling is not None and not isinstance(scaling, RopeScaling):
        raise ConfigError(f"rope_scaling must be a RopeScaling record or None, not {scaling!r}.")
    rotary_dim = head_dim if not isinstance(family, Family) or family.rotary_dim is None else family.rotary_dim
    if scaling is not None:
        check_rotated(rotary_dim, fields["rope_theta"], scaling, spelling)
    for name in ("rope_interleaved", "qk_norm", "qkv_bias", "o_bias", "tie_embeddings"):
        check_flag(name, fields[name], spelling=spelling)
    if not rotary:
        _check_no_rotation(fields, spelling)
    if family is not None:
        limits = {name: fields[name] for name in ("num_layers", "num_heads", "window", "qk_norm")}
        check_family(family, **limits, head_dim=head_dim, spelling=spelling)
        if family.window_rope_scaling is not None:
            check_rotated(rotary_dim, family.window_rope_theta, family.window_rope_scaling, spelling)
    return {"num_kv_heads": num_kv_heads, "head_dim": head_dim, "d_ff": d_ff}


def _check_no_rotation(fields: Mapping[str, Any], spelling: Spelling) -> None:
    for name in ("rope_theta", "rope_interleaved", "rope_scaling"):
        if fields[name] != next(field.default for field in dataclasses.fields(ModelConfig) if field.name == name):
            raise ConfigError(
                f"family.learned_positions rotates nothing, so {spelling.name(name)} must be left out, but it is "
                f"{spelling.value(fields[name])}."
            )


def check_encoder_decoder(fields: Mapping[str, Any], spelling: Spelling = IN_PYTHON) -> dict[str, int]:
    """The sizes that an EncoderDecoderConfig with these fields fills in. Raises ConfigError as `check_model` does."""
    for name in ("vocab_size", "d_model", "num_layers", "num_heads", "max_seq_len"):
        check_size(name, fields[name], spelling=spelling)
    d_model, num_heads, positions = (fields[name] for name in ("d_model", "num_heads", "positions"))
    if positions not in ("sinusoidal", "learned"):
        raise ConfigError(f"positions must be 'sinusoidal' or 'learned', not {spelling.value(positions)}.")
    if positions == "sinusoidal" and d_model % 2:
        wider = 2 * num_heads * -(-d_model // (2 * num_heads))
        raise ConfigError(
            f"d_model must be even, because sinusoidal positions are pairs of a sine and a cosine, but it is "
            f"{d_model}; d_model={wider} would do, or positions='learned'."
        )
    attention_sizes(d_model, num_heads, None, None, rotary=False, spelling=spelling)
    defaults = {
        "num_decoder_layers": fields["num_layers"],
        "d_ff": 4 * d_model,
        "target_vocab_size": fields["vocab_size"],
    }
    sizes = {name: default if fields[name] is None else fields[name] for name, default in defaults.items()}
    for name, size in sizes.items():
        check_size(name, size, spelling=spelling)
    check_number("eps", fields["eps"], above=0.0, spelling=spelling)
    check_dropout(fields["dropout"], spelling=spelling)
    check_flag("tie_embeddings", fields["tie_embeddings"], spelling=spelling)
    target = sizes["target_vocab_size"]
    if fields["tie_embeddings"] and target != fields["vocab_size"]:
        raise ConfigError(
            f"tie_embeddings needs a shared vocabulary, but vocab_size is {fields['vocab_size']} and target_vocab_size "
            f"is {target}; tie_embeddings={spelling.value(False)} would do."
        )
    start = fields["start_token_id"]
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < target:
        raise ConfigError(f"start_token_id must be in [0, {target}), not {spelling.value(start)}.")
    return sizes


def _fields_of(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def default_d_ff(d_model: int) -> int:
    """8/3 d_model, rounded up to a multiple of 64: three SwiGLU matrices then cost what two of width 4 d_model do."""
    return 64 * math.ceil(8 * d_model / 3 / 64)
