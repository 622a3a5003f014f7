"""Which models the kernel supports: those with unmodified prenorm parts, all blocks of one size."""

import dataclasses
import operator
from collections import defaultdict
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from ...blocks.families.attention import FamilyAttention
from ...blocks.families.pre_norm import PreNormBlock
from ...blocks.transformer import TransformerBlock
from ...config import ModelConfig
from ...family import Family
from ...kernels.cpu.decode_attention import WIDTH
from ...kernels.cpu.decode_step import DTYPES, Sizes
from ...layers.attention import SelfAttention
from ...layers.dropout import Dropout
from ...layers.embedding import Embedding
from ...layers.gated import GatedFeedForward
from ...layers.linear import Linear
from ...layers.norm import RMSNorm
from ...layers.quantized import QuantizedLinear
from ...layers.rope import RotaryEmbedding
from ...layers.scaled_embedding import ScaledEmbedding
from ...layers.swiglu import SwiGLU

PARTS = (
    *(TransformerBlock, SelfAttention, Dropout, Embedding, SwiGLU, Linear, QuantizedLinear, RMSNorm, RotaryEmbedding),
    *(PreNormBlock, FamilyAttention, GatedFeedForward, ScaledEmbedding),  # where their record adds windows alone
)
FORWARDS: dict[type[nn.Module], Any] = {
    part: part.forward for part in PARTS
}  # kept, so that a later replacement is noticed
MATRICES = (
    *("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
    *("ffn.gate_proj", "ffn.up_proj", "ffn.down_proj"),
)
CLASSES: dict[str, tuple[type[nn.Module], ...]] = {  # of the parts of a block
    "norm1": (RMSNorm,),
    "attn": (SelfAttention, FamilyAttention),
    "attn.rope": (RotaryEmbedding,),
    "norm2": (RMSNorm,),
    "ffn": (SwiGLU, GatedFeedForward),
    "dropout": (Dropout,),
    **dict.fromkeys(MATRICES, (Linear, QuantizedLinear)),
}


@runtime_checkable
class LanguageModel(Protocol):
    """The interface needed from a model; the caller checks its class and its `forward`."""

    config: ModelConfig
    embedding: Embedding
    layers: nn.ModuleList
    final_norm: RMSNorm
    lm_head: Linear | QuantizedLinear | None

    def check_cache(self, cache: object) -> None:
        """Raise ConfigError unless it is a cache that fits this model."""
        ...


def has_untouched_parts(modules: list[nn.Module]) -> bool:
    """Whether all modules below the model (the first) are unmodified prenorm modules, without overridden methods."""
    parts = [module for module in modules[1:] if type(module) is not nn.ModuleList]
    own: dict[type[nn.Module], set[str]] = defaultdict(set)
    for module in modules:
        own[type(module)].update(vars(module))
    return all(FORWARDS.get(type(part)) is type(part).forward for part in parts) and not any(
        callable(getattr(kind, name, None)) for kind, names in own.items() for name in names
    )


def has_classic_layers(config: ModelConfig) -> bool:
    """Whether each layer is the block's, whatever its window, with frequencies that are the same at every length."""
    by_length = config.rope_scaling is not None and config.rope_scaling.by_length
    return not by_length and (config.family is None or dataclasses.replace(config.family, windows=()) == Family())


def sizes_of(model: LanguageModel) -> Sizes | None:
    """The sizes shared by all blocks; None if they differ, or the kernel does not support the model."""
    found = set()
    weight = model.embedding.weight
    if not weight.is_cpu or weight.dtype not in DTYPES or type(model.final_norm) is not RMSNorm:
        return None
    if not has_classic_layers(model.config) or getattr(model.embedding, "scale", 1) != 1:
        return None
    head = model.lm_head
    if head is not None and (type(head) not in (Linear, QuantizedLinear) or head.bias is not None):
        return None
    for block in cast("list[TransformerBlock]", list(model.layers)):
        if type(block) not in (TransformerBlock, PreNormBlock) or any(
            type(operator.attrgetter(name)(block)) not in expected for name, expected in CLASSES.items()
        ):
            return None
        if not _is_classic(block):
            return None
        attention, ffn, rope = block.attn, block.ffn, block.attn.rope
        assert rope is not None
        head_norms = (attention.q_norm, attention.k_norm)
        if {type(norm) for norm in head_norms} not in ({RMSNorm}, {type(None)}):
            return None
        dropped = (block.dropout.training and block.dropout.p) or (attention.training and attention.dropout)
        biased = any(one.bias is not None for one in (ffn.gate_proj, ffn.up_proj, ffn.down_proj))
        eps = {norm.eps for norm in (block.norm1, block.norm2, *head_norms, model.final_norm) if norm is not None}
        if dropped or biased or rope.by_length or not attention.causal or len(eps) > 1 or attention.head_dim % WIDTH:
            return None
        sizes = Sizes(
            num_heads=attention.num_heads,
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
            d_ff=ffn.d_ff,
            interleaved=rope.interleaved,
            eps=eps.pop(),
        )
        found.add((sizes, rope))
    return found.pop()[0] if len(found) == 1 else None


def _is_classic(block: Any) -> bool:
    """Whether what a family's block, attention and feed-forward were told adds nothing."""
    told = getattr(block.attn, "family", None)
    classic = told is None or dataclasses.replace(told, windows=()) == Family()
    return classic and getattr(block, "scale", 1) == 1 and getattr(block.ffn, "activation", "silu") == "silu"
