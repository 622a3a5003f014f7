"""A small language model over bytes, of blocks of any variant, and how its weights start."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..layers.embedding import Embedding
from ..layers.layer_norm import LayerNorm
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.plan import Call
from ..layers.rope import RotaryEmbedding
from ..models.init import initialise
from .variants import DeepNorm, make_block

BYTES = 256  # the vocabulary

# How weights start. Xavier: every matrix normal with variance 2 / (in + out), the embedding with variance 1, as the
# layers begin by themselves; nothing depends on depth (Xiong et al. 2020, section 3.3). Ours: what `TransformerLM` has.
XAVIER, OURS = "Xavier", "depth-scaled"
STARTS = (XAVIER, OURS)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a model but for its depth, and of a batch of rows."""

    d_model: int = 32
    num_heads: int = 4
    d_ff: int = 88  # 8/3 of the width, in steps of 8
    batch: int = 8
    context: int = 32


SMALL = Sizes()


class VariantLM(nn.Module):
    """Bytes to the logits of the next byte, through `depth` blocks of a variant. Weights depend on `seed` alone."""

    def __init__(
        self, variant: str, depth: int, start: str, *, sizes: Sizes, seed: int, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.sizes = sizes
        torch.manual_seed(seed)
        d_model, num_heads, d_ff = sizes.d_model, sizes.num_heads, sizes.d_ff
        rope = RotaryEmbedding(d_model // num_heads, sizes.context)
        self.embedding = Embedding(BYTES, d_model, dtype=dtype)
        self.layers = nn.ModuleList(
            make_block(variant, d_model, num_heads, d_ff, depth=depth, rope=rope, dtype=dtype) for _ in range(depth)
        )
        ends_normed = getattr(self.layers[0], "ends_normed", False)
        norm = LayerNorm if variant == "LayerNorm" else RMSNorm
        self.final_norm = nn.Identity() if ends_normed else norm(d_model, dtype=dtype)
        self.lm_head = Linear(d_model, BYTES, dtype=dtype)
        if start == OURS:
            initialise(self, depth)
        for block in self.layers:
            if isinstance(block, DeepNorm):
                block.start()

    def streams(self, token_ids: Int[Tensor, "batch seq"]) -> list[Float[Tensor, "batch seq d_model"]]:
        """The residual stream before the first block, and after each."""
        streams = [self.embedding(token_ids)]
        plan = Call(streams[0]).plan(self.layers[0].attn)
        for block in self.layers:
            streams.append(block(streams[-1], plan=plan))
        return streams

    def last_matrices(self) -> list[nn.Parameter]:
        """The last weights of each block's feed-forward."""
        return [one for name, one in self.named_parameters() if name.endswith("ffn.down_proj.weight")]

    def forward(
        self, token_ids: Int[Tensor, "batch seq"], *, hidden: bool = False
    ) -> Float[Tensor, "batch seq vocab_or_d_model"]:
        """The logits of the byte after each, or, if `hidden`, what the head sees."""
        x = self.final_norm(self.streams(token_ids)[-1])
        return x if hidden else self.lm_head(x)
