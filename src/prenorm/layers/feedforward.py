"""The classical feed-forward layer, with GELU and biases."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.gelu import gelu
from ..validation import check_size
from .dropout import Dropout
from .linear import Linear


class FeedForward(nn.Module):
    """down_proj(dropout(gelu(up_proj(x)))), with biases and the exact GELU. d_ff is the width as built.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.3, with GELU instead of ReLU as in BERT (arXiv:1810.04805).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("d_ff", d_ff)
        self.d_model, self.d_ff = d_model, d_ff
        self.up_proj = Linear(d_model, d_ff, bias=True, device=device, dtype=dtype)
        self.down_proj = Linear(d_ff, d_model, bias=True, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """Up-projection, GELU, dropout (in training), down-projection."""
        return self.down_proj(self.dropout(gelu(self.up_proj(x))))
