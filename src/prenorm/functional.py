"""The operations as plain functions: `import prenorm.functional as F`."""

from .ops.attention import scaled_dot_product_attention
from .ops.cross_entropy import cross_entropy, linear_cross_entropy
from .ops.dropout import dropout
from .ops.gelu import gelu
from .ops.layer_norm import layer_norm
from .ops.linear import linear
from .ops.multihead import multihead_self_attention, multihead_self_attention_with_rope
from .ops.norm import rms_norm
from .ops.positions import sinusoidal_positions
from .ops.rope import rope
from .ops.softmax import softmax
from .ops.swiglu import silu, swiglu

__all__ = [
    "cross_entropy",
    "dropout",
    "gelu",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "multihead_self_attention",
    "multihead_self_attention_with_rope",
    "rms_norm",
    "rope",
    "scaled_dot_product_attention",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "swiglu",
]
