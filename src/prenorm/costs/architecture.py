"""What costs are computed from: the sizes of a model's matrices, and which of the usual parts it has."""

from dataclasses import dataclass
from typing import Literal

from ..config import ModelConfig
from ..errors import ConfigError


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
    window: int | None = None
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    tie_embeddings: bool = False
    dropout: float = 0.0

    gated: bool = True
    """SwiGLU with three matrices; otherwise two matrices with GELU between them."""

    ffn_bias: bool = False
    """Biases of the feed-forward matrices."""

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""

    norm_vectors: int = 1
    """How many vectors of d_model a norm has: 1 for a weight, 2 for a weight and a bias."""

    learned_positions: bool = False
    """A learned vector for each of max_seq_len positions, instead of rotary positions."""

    parallel: bool = False
    """Attention and feed-forward run in parallel on one norm."""

    @property
    def query_width(self) -> int:
        """The total width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """The total width of all key heads, which is also that of the value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def is_ours(self) -> bool:
        """Whether a TransformerLM can be this model."""
        return self.gated and self.norm == "rms" and not (self.ffn_bias or self.learned_positions or self.parallel)


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture of a TransformerLM. Raises ConfigError for one with a family record, which has other parts."""
    if config.family is not None:
        raise ConfigError(
            "costs can only be computed for models of TransformerBlock, but this model's family has other parts "
            "(config.family); there is no cost sheet for it yet."
        )
    sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len")
    switches = ("window", "qk_norm", "qkv_bias", "o_bias", "tie_embeddings", "dropout")
    return Architecture(**{name: getattr(config, name) for name in (*sizes, *switches)})
