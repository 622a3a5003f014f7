"""One Transformer block you can read, trust and run fast, and everything that grows out of it.

The public names are loaded on first use, so that `prenorm --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .blocks.decoder import TransformerDecoderBlock as TransformerDecoderBlock
    from .blocks.encoder import TransformerEncoderBlock as TransformerEncoderBlock
    from .blocks.transformer import TransformerBlock as TransformerBlock
    from .checkpoint.pytorch import from_pytorch as from_pytorch
    from .checkpoint.pytorch import to_pytorch as to_pytorch
    from .config import EncoderDecoderConfig as EncoderDecoderConfig
    from .config import ModelConfig as ModelConfig
    from .config import RopeScaling as RopeScaling
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import PrenormError as PrenormError
    from .errors import RangeError as RangeError
    from .errors import ShapeError as ShapeError
    from .generation.padding import pad as pad
    from .layers.attention import SelfAttention as SelfAttention
    from .layers.cache import KVCache as KVCache
    from .layers.embedding import Embedding as Embedding
    from .layers.feedforward import FeedForward as FeedForward
    from .layers.layer_norm import LayerNorm as LayerNorm
    from .layers.linear import Linear as Linear
    from .layers.multihead import MultiHeadAttention as MultiHeadAttention
    from .layers.norm import RMSNorm as RMSNorm
    from .layers.rope import RotaryEmbedding as RotaryEmbedding
    from .layers.swiglu import SwiGLU as SwiGLU
    from .models.decoder import TransformerDecoder as TransformerDecoder
    from .models.encoder import TransformerEncoder as TransformerEncoder
    from .models.encoder_decoder import EncoderDecoder as EncoderDecoder
    from .models.lm import TransformerLM as TransformerLM
    from .ops.backends import explain as explain
    from .ops.backends import use_backend as use_backend

_HOME = {
    "TransformerDecoderBlock": "blocks.decoder",
    "TransformerEncoderBlock": "blocks.encoder",
    "TransformerBlock": "blocks.transformer",
    "from_pytorch": "checkpoint.pytorch",
    "to_pytorch": "checkpoint.pytorch",
    "EncoderDecoderConfig": "config",
    "ModelConfig": "config",
    "RopeScaling": "config",
    "PrenormError": "errors",
    "ConfigError": "errors",
    "ShapeError": "errors",
    "RangeError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "pad": "generation.padding",
    "SelfAttention": "layers.attention",
    "KVCache": "layers.cache",
    "Embedding": "layers.embedding",
    "SwiGLU": "layers.swiglu",
    "FeedForward": "layers.feedforward",
    "Linear": "layers.linear",
    "MultiHeadAttention": "layers.multihead",
    "RMSNorm": "layers.norm",
    "LayerNorm": "layers.layer_norm",
    "RotaryEmbedding": "layers.rope",
    "TransformerDecoder": "models.decoder",
    "TransformerEncoder": "models.encoder",
    "EncoderDecoder": "models.encoder_decoder",
    "TransformerLM": "models.lm",
    "explain": "ops.backends",
    "use_backend": "ops.backends",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prenorm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
