"""The decoder: classical pre-norm blocks with cross-attention, and a final norm."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..blocks.activation_checkpointing import run_block
from ..blocks.decoder import FORWARD, TransformerDecoderBlock, check_sources
from ..blocks.plan import plan_for
from ..errors import ConfigError
from ..layers.cache import one_pass
from ..layers.decoder_cache import DecoderCache
from ..layers.layer_norm import LayerNorm
from ..layers.plan import Call
from ..validation import check_size


class TransformerDecoder(nn.Module):
    """num_layers of `TransformerDecoderBlock`, then a LayerNorm, as `nn.TransformerDecoder` with norm_first=True.

    Raises ConfigError for invalid sizes.
    """

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        num_heads: int,
        d_ff: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        check_size("num_layers", num_layers)
        self.num_heads = num_heads
        self.layers = nn.ModuleList(
            TransformerDecoderBlock(d_model, num_heads, d_ff, dropout, eps, device, dtype, causal=causal)
            for _ in range(num_layers)
        )
        self.final_norm = LayerNorm(d_model, eps, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "*batch seq d_model"],
        encoder_output: Float[Tensor, "*batch source_seq d_model"] | None = None,
        self_mask: Bool[Tensor, "*self_batch self_q_or_1 seq_so_far"] | None = None,
        cross_mask: Bool[Tensor, "*cross_batch cross_q_or_1 source_seq"] | None = None,
        use_checkpointing: bool | int = True,
        *,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
        cache: DecoderCache | None = None,
    ) -> Float[Tensor, "*batch seq d_model"]:
        """Decode x (..., seq, d_model), any leading dims. Arguments as in `TransformerDecoderBlock.forward`.

        use_checkpointing: as in `TransformerEncoder.forward`; nothing is checkpointed with a cache.
        Raises ShapeError and ConfigError.
        """
        if cache is not None:
            if not isinstance(cache, DecoderCache):
                raise ConfigError(f"a decoder takes a DecoderCache, from make_cache, not a {type(cache).__name__}.")
            if encoder_output is not None or cross_mask is not None:
                raise ConfigError(
                    "encoder_output and cross_mask must be left out with a cache, which already holds both; make_cache("
                    "encoder_output, max_seq_len, cross_mask) makes a cache for others."
                )
            cache.check(len(self.layers))
            cross_mask, use_checkpointing = cache.cross_mask, False
        else:
            check_sources(encoder_output, cross_mask, None, x)
        with one_pass(cache):
            call = Call(x, mask=self_mask, segment_ids=segment_ids, cache=cache)
            for number, block in enumerate(self.layers):
                layer = None if cache is None else cache[number]
                options = {"segment_ids": segment_ids, **plan_for(block, FORWARD, "self_attn", x, call, layer)}
                if layer is not None:
                    options["cache"] = layer
                given = (block, number, x, encoder_output, self_mask, cross_mask)
                x = run_block(*given, use_checkpointing=use_checkpointing, **options)
            x = self.final_norm(x)
            call.done()
            return x

    def make_cache(
        self,
        encoder_output: Float[Tensor, "batch source_seq d_model"],
        max_seq_len: int,
        cross_mask: Bool[Tensor, "*cross_batch source_seq"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> DecoderCache:
        """A cache with each block's keys and values of the encoder output, and room for max_seq_len tokens per row.

        cross_mask: (batch, heads or 1, 1, source_seq), the same for every later token.
        """
        blocks = cast("Sequence[TransformerDecoderBlock]", self.layers)
        return DecoderCache([block.make_cache(encoder_output, max_seq_len, dtype) for block in blocks], cross_mask)
