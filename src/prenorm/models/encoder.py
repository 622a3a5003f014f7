"""The encoder: classical pre-norm blocks and a final norm, with activation checkpointing."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..blocks.activation_checkpointing import run_block
from ..blocks.encoder import TransformerEncoderBlock
from ..layers.layer_norm import LayerNorm
from ..ops.documents import check_segments, within_documents
from ..validation import check_size


class TransformerEncoder(nn.Module):
    """num_layers of `TransformerEncoderBlock`, then a LayerNorm, as `nn.TransformerEncoder` with norm_first=True.

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
        self.d_model, self.num_heads = d_model, num_heads
        self.layers = nn.ModuleList(
            TransformerEncoderBlock(d_model, num_heads, d_ff, dropout, eps, device, dtype, causal=causal)
            for _ in range(num_layers)
        )
        self.final_norm = LayerNorm(d_model, eps, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "*batch seq d_model"],
        mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None,
        use_checkpointing: bool | int = True,
        *,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
    ) -> Float[Tensor, "*batch seq d_model"]:
        """Encode x (..., seq, d_model), any leading dims. mask and segment_ids as in `TransformerBlock`.

        use_checkpointing: in training, keep only the inputs of all blocks (True) or of every k-th block (k), and run
        those blocks again in the backward pass; results are the same bit for bit. False: keep everything.
        Raises ShapeError and ConfigError.
        """
        if segment_ids is not None:  # the same in every block, so computed once
            check_segments(segment_ids, x.shape[:-1], axes="(..., seq) = ")
            mask = within_documents(segment_ids, mask, self.num_heads)
        for number, block in enumerate(self.layers):
            x = run_block(block, number, x, mask, use_checkpointing=use_checkpointing)
        return self.final_norm(x)
