"""Blocks that differ from the blessed ones in one thing, to be measured against them."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..blocks.encoder import TransformerEncoderBlock
from ..blocks.transformer import TransformerBlock
from ..layers.attention import SelfAttention
from ..layers.layer_norm import LayerNorm
from ..layers.norm import RMSNorm
from ..layers.plan import AttentionPlan
from ..layers.rope import RotaryEmbedding
from ..layers.swiglu import SwiGLU
from ..layers.two_matrices import TwoMatrices

Sublayer = Callable[[Tensor], Tensor]


class Variant(nn.Module):
    """Attention, then feed-forward, each put into the stream by `join`; made of what `TransformerBlock` is made of.

    depth: how many blocks the model has. `ends_normed`: whether the stream needs no final norm after the last one.
    """

    ends_normed = False

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        depth: int,
        rope: RotaryEmbedding,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.norm1 = RMSNorm(d_model, dtype=dtype)
        self.attn = SelfAttention(d_model, num_heads, rope, dtype=dtype, causal=True)
        self.norm2 = RMSNorm(d_model, dtype=dtype)
        self.ffn = SwiGLU(d_model, d_ff, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "*batch seq d_model"], *, plan: AttentionPlan | None = None
    ) -> Float[Tensor, "*batch seq d_model"]:
        """The block applied to x; plan as in `TransformerBlock`."""
        x = self.join(x, self.norm1, partial(self.attn, plan=plan))
        return self.join(x, self.norm2, self.ffn)

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """The stream after a sublayer."""
        raise NotImplementedError


class PostNorm(Variant):
    """norm(x + f(x)), on the residual path, as the paper of 2017 has it. Source: arXiv:1706.03762."""

    ends_normed = True

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """norm(x + f(x))."""
        return norm(x + sublayer(x))


class Sandwich(Variant):
    """x + norm(f(norm(x))): what is added is normed, too. Source: Ding et al. 2021 (CogView), arXiv:2105.13290."""

    def __init__(self, d_model: int, num_heads: int, d_ff: int, **options: object) -> None:
        super().__init__(d_model, num_heads, d_ff, **options)  # type: ignore[arg-type]  # passed on as they are
        dtype = self.norm1.weight.dtype
        self.after = nn.ModuleDict({name: RMSNorm(d_model, dtype=dtype) for name in ("norm1", "norm2")})

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """x + norm(f(norm(x)))."""
        after = self.after["norm1" if norm is self.norm1 else "norm2"]
        return x + after(sublayer(norm(x)))


class NormOnSkip(Variant):
    """norm(x) + f(norm(x)): the skip path is normed, too.

    Megatron-LM's apply_residual_connection_post_layernorm. He et al. 2016, arXiv:1603.05027, is against anything there.
    """

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """norm(x) + f(norm(x))."""
        x = norm(x)
        return x + sublayer(x)


class NoResidual(Variant):
    """f(norm(x)): nothing goes around the sublayers."""

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """f(norm(x))."""
        return sublayer(norm(x))


class NoNorm(Variant):
    """x + f(x): nothing is normed, not even the end of the stream."""

    ends_normed = True

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """x + f(x)."""
        return x + sublayer(x)


class ScaledResidual(Variant):
    """x + f(norm(x)) / sqrt(2 depth): all that is added together has a size that does not grow with depth.

    Source: Hayou et al. 2021 (Stable ResNet), arXiv:2010.12859.
    """

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """x + f(norm(x)) / sqrt(2 depth)."""
        return x + sublayer(norm(x)) / math.sqrt(2 * self.depth)


class DeepNorm(Variant):
    """norm(alpha x + f(x)), alpha = (2 depth)^(1/4); values, outputs and feed-forward start (8 depth)^(-1/4) as large.

    Source: Wang et al. 2022 (DeepNet), arXiv:2203.00555, for a decoder alone.
    """

    ends_normed = True

    def join(self, x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
        """norm(alpha x + f(x))."""
        return norm((2 * self.depth) ** 0.25 * x + sublayer(x))

    def start(self) -> None:
        """Make weights as small as the paper has them, once they are drawn."""
        with torch.no_grad():
            for layer in (self.attn.v_proj, self.attn.o_proj, self.ffn.gate_proj, self.ffn.up_proj, self.ffn.down_proj):
                layer.weight.mul_((8 * self.depth) ** -0.25)


def with_layer_norm(block: TransformerBlock) -> TransformerBlock:
    """The block with LayerNorm, weight and bias, where it has RMSNorm."""
    d_model, dtype = block.norm1.d_model, block.norm1.weight.dtype
    block.norm1, block.norm2 = (LayerNorm(d_model, dtype=dtype) for _ in range(2))  # type: ignore[assignment]
    return block


def with_gelu(block: TransformerBlock) -> TransformerBlock:
    """The block with GELU between two matrices, wider by half, so that they have as many weights as SwiGLU's three."""
    ffn = block.ffn
    d_ff = 3 * ffn.d_ff // 2
    block.ffn = TwoMatrices(ffn.d_model, d_ff, "gelu", dtype=ffn.down_proj.dtype)  # type: ignore[assignment]
    return block


# Blocks with another part in the place of one of the blessed block's.
SWAPS: dict[str, Callable[[TransformerBlock], TransformerBlock]] = {"LayerNorm": with_layer_norm, "GELU": with_gelu}

VARIANTS: dict[str, type[TransformerBlock] | type[Variant]] = {
    "pre-norm": TransformerBlock,
    "post-norm": PostNorm,
    "sandwich": Sandwich,
    "norm on skip": NormOnSkip,
    "no residual": NoResidual,
    "no norm": NoNorm,
    "scaled residual": ScaledResidual,
    "DeepNorm": DeepNorm,
}


def make_block(
    name: str, d_model: int, num_heads: int, d_ff: int, *, depth: int, rope: RotaryEmbedding, dtype: torch.dtype | None
) -> TransformerBlock | Variant:
    """A causal block of VARIANTS or SWAPS, for a model of `depth` blocks. Pre-norm is the blessed block itself."""
    kind = VARIANTS.get(name, TransformerBlock)
    if issubclass(kind, Variant):
        return kind(d_model, num_heads, d_ff, depth=depth, rope=rope, dtype=dtype)
    block = kind(d_model, num_heads, d_ff, rope=rope, dtype=dtype, causal=True)
    return SWAPS[name](block) if name in SWAPS else block


class PostNormEncoderBlock(TransformerEncoderBlock):
    """`TransformerEncoderBlock` with its norms on the residual path, after each sum, as the paper of 2017 has them.

    BERT's layer has the same numbers, with eps=1e-12 (its code drops nothing after the GELU).
    Sources: Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2018, arXiv:1810.04805.
    """

    def forward(  # type: ignore[override]  # packed documents are not a part of the comparison
        self, x: Float[Tensor, "*batch seq d_model"], mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None
    ) -> Float[Tensor, "*batch seq d_model"]:
        """norm(x + attention(x)), then norm(x + feed-forward(x))."""
        x = self.norm1(x + self.dropout(self.attn(x, mask=mask)))
        return self.norm2(x + self.dropout(self.ffn(x)))
