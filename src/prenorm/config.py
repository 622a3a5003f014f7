"""What a model is: the numbers that fix its shape, checked once, to JSON and back unchanged."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError
from .validation import attention_sizes, check_dropout, check_flag, check_number, check_size


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of the original training.

    linear: every frequency is divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    llama3: wavelengths above original_max_seq_len / low_freq_factor are stretched by `factor`, those below
    original_max_seq_len / high_freq_factor are kept, and between the two the frequency is interpolated
    (Llama 3.1, arXiv:2407.21783 and its reference code).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ConfigError(f"rope_scaling kind must be 'linear' or 'llama3', not {self.kind!r}.")
        check_number("rope_scaling factor", self.factor, at_least=1.0)
        check_number("rope_scaling low_freq_factor", self.low_freq_factor, above=0.0)
        check_number("rope_scaling high_freq_factor", self.high_freq_factor, above=0.0)
        check_size("rope_scaling original_max_seq_len", self.original_max_seq_len)
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"rope_scaling high_freq_factor must be greater than low_freq_factor, but {self.high_freq_factor} "
                f"is not greater than {self.low_freq_factor}; Llama 3.1 has 4.0 and 1.0."
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a TransformerLM. Sizes left as None are filled in, so every field can be read as a number.

    Raises ConfigError when no model can have these numbers.
    """

    vocab_size: int
    """Tokens in the vocabulary."""

    d_model: int
    """Width of the residual path."""

    num_layers: int
    """Blocks."""

    num_heads: int
    """Query heads in each block."""

    num_kv_heads: Any = None
    """Key and value heads in each block. Default: num_heads."""

    head_dim: Any = None
    """Width of a head. Default: d_model / num_heads."""

    d_ff: Any = None
    """Width of the feed-forward layer. Default: 8/3 d_model, rounded up to a multiple of 64."""

    max_seq_len: int = 2048
    """Most tokens in a sequence."""

    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""

    rope_interleaved: bool = False
    """Rotate pairs (2i, 2i+1) instead of (i, i + head_dim/2)."""

    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are stretched. Default: not at all."""

    eps: float = 1e-6
    """Added to the mean of squares in the norms."""

    window: int | None = None
    """Places that a query sees, itself among them. Default: all before it."""

    qk_norm: bool = False
    """Normalise queries and keys before the rotation."""

    qkv_bias: bool = False
    """Biases of the query, key and value projections."""

    o_bias: bool = False
    """Bias of the attention's output projection."""

    tie_embeddings: bool = False
    """Use the embedding's weight as the head."""

    dropout: float = 0.0
    """Probability of dropping attention weights and what attention and feed-forward add, in training."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "max_seq_len"):
            check_size(name, getattr(self, name))
        num_kv_heads, head_dim = attention_sizes(self.d_model, self.num_heads, self.num_kv_heads, self.head_dim)
        _fill_in(self, num_kv_heads=num_kv_heads, head_dim=head_dim, d_ff=default_d_ff(self.d_model))
        check_number("rope_theta", self.rope_theta, above=0.0)
        check_number("eps", self.eps, above=0.0)
        check_dropout(self.dropout)
        if self.window is not None:
            check_size("window", self.window)
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise ConfigError(f"rope_scaling must be a RopeScaling record or None, not {self.rope_scaling!r}.")
        for name in ("rope_interleaved", "qk_norm", "qkv_bias", "o_bias", "tie_embeddings"):
            check_flag(name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts: `ModelConfig.from_dict` gives the same config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The config that `to_dict` wrote. Raises ConfigError for fields that no config has."""
        scaling = fields.get("rope_scaling")
        if isinstance(scaling, dict):
            fields = {**fields, "rope_scaling": _from_dict(RopeScaling, "rope_scaling", scaling)}
        return _from_dict(cls, "a model config", fields)


@dataclass(frozen=True, slots=True)
class EncoderDecoderConfig:
    """The shape of an EncoderDecoder. Sizes left as None are filled in, so every field can be read as a number.

    Raises ConfigError when no model can have these numbers.
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
    """Most tokens in a source, and in a target."""

    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """How tokens know their places: fixed sines and cosines, or a learned vector for each place."""

    start_token_id: int = 0
    """The target token that `generate` starts from."""

    eps: float = 1e-5
    """Added to the variance in the norms."""

    tie_embeddings: bool = True
    """One matrix embeds the source and the target, and is the head."""

    dropout: float = 0.1
    """Probability of dropping embeddings, attention weights, hidden values and what each sublayer adds, in training."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "max_seq_len"):
            check_size(name, getattr(self, name))
        if self.positions not in ("sinusoidal", "learned"):
            raise ConfigError(f"positions must be 'sinusoidal' or 'learned', not {self.positions!r}.")
        if self.positions == "sinusoidal" and self.d_model % 2:
            wider = 2 * self.num_heads * math.ceil(self.d_model / (2 * self.num_heads))
            raise ConfigError(
                f"d_model must be even, because sinusoidal positions are pairs of a sine and a cosine, but it is "
                f"{self.d_model}; d_model={wider} would do, or positions='learned'."
            )
        attention_sizes(self.d_model, self.num_heads, None, None, rotary=False)
        _fill_in(self, num_decoder_layers=self.num_layers, d_ff=4 * self.d_model, target_vocab_size=self.vocab_size)
        check_number("eps", self.eps, above=0.0)
        check_dropout(self.dropout)
        check_flag("tie_embeddings", self.tie_embeddings)
        if self.tie_embeddings and self.target_vocab_size != self.vocab_size:
            raise ConfigError(
                f"tie_embeddings needs one vocabulary, but vocab_size is {self.vocab_size} and target_vocab_size "
                f"{self.target_vocab_size}; tie_embeddings=False would do."
            )
        start = self.start_token_id
        if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < self.target_vocab_size:
            raise ConfigError(f"start_token_id must be in [0, {self.target_vocab_size}), not {start!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: `EncoderDecoderConfig.from_dict` gives the same config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "EncoderDecoderConfig":
        """The config that `to_dict` wrote. Raises ConfigError for fields that no config has."""
        return _from_dict(cls, "an encoder-decoder config", fields)


def _fill_in(record: object, **defaults: int) -> None:
    """Give the sizes that are None these values."""
    for name, default in defaults.items():
        value = default if getattr(record, name) is None else getattr(record, name)
        check_size(name, value)
        object.__setattr__(record, name, value)


def _from_dict(record: type[Any], what: str, fields: dict[str, Any]) -> Any:
    known = {field.name: field for field in dataclasses.fields(record)}
    unknown = sorted(fields.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{what} has no field named {', '.join(unknown)}.")
    missing = [n for n, field in known.items() if field.default is dataclasses.MISSING and n not in fields]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}.")
    return record(**fields)


def default_d_ff(d_model: int) -> int:
    """8/3 d_model, rounded up to a multiple of 64: SwiGLU's three matrices then cost what two of 4 d_model did."""
    return 64 * math.ceil(8 * d_model / 3 / 64)
