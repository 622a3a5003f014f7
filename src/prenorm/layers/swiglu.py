"""The gated feed-forward layer (SwiGLU)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.swiglu import silu_gate
from ..validation import check_size
from .linear import Linear


class SwiGLU(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x)), without biases. Source: Shazeer 2020, arXiv:2002.05202.

    d_ff is the width as built; it is not rescaled.
    """

    def __init__(
        self, d_model: int, d_ff: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("d_ff", d_ff)
        self.d_model, self.d_ff = d_model, d_ff
        self.gate_proj = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.up_proj = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.down_proj = Linear(d_ff, d_model, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """See `prenorm.functional.swiglu`."""
        return self.down_proj(silu_gate(self.gate_proj(x), self.up_proj(x)))
