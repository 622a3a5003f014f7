"""The public names, and where each comes from. Type checkers read this file, and so does `__init__.py`."""

from .blocks.decoder import TransformerDecoderBlock as TransformerDecoderBlock
from .blocks.encoder import TransformerEncoderBlock as TransformerEncoderBlock
from .blocks.transformer import TransformerBlock as TransformerBlock
from .checkpoint.pytorch import from_pytorch as from_pytorch
from .checkpoint.pytorch import to_pytorch as to_pytorch
from .config import EncoderDecoderConfig as EncoderDecoderConfig
from .config import ModelConfig as ModelConfig
from .config import RopeScaling as RopeScaling
from .distributed.parallelize import parallelize as parallelize
from .errors import CheckpointError as CheckpointError
from .errors import ConfigError as ConfigError
from .errors import DataError as DataError
from .errors import KernelError as KernelError
from .errors import PrenormError as PrenormError
from .errors import ProcessError as ProcessError
from .errors import RangeError as RangeError
from .errors import ShapeError as ShapeError
from .generation.padding import pad as pad
from .layers.attention import SelfAttention as SelfAttention
from .layers.cache import KVCache as KVCache
from .layers.cross_attention import MultiHeadAttention as MultiHeadAttention
from .layers.embedding import Embedding as Embedding
from .layers.feedforward import FeedForward as FeedForward
from .layers.layer_norm import LayerNorm as LayerNorm
from .layers.linear import Linear as Linear
from .layers.norm import RMSNorm as RMSNorm
from .layers.rope import RotaryEmbedding as RotaryEmbedding
from .layers.swiglu import SwiGLU as SwiGLU
from .models.decoder import TransformerDecoder as TransformerDecoder
from .models.encoder import TransformerEncoder as TransformerEncoder
from .models.encoder_decoder import EncoderDecoder as EncoderDecoder
from .models.lm import TransformerLM as TransformerLM
from .models.with_loss import ModelWithLoss as ModelWithLoss
from .ops.backends import explain as explain
from .ops.backends import use_backend as use_backend

__version__: str
