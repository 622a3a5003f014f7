"""The gated feed-forward layer with any activation, with or without biases."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..family import Activation
from ..ops.activations import ACTIVATIONS
from ..ops.swiglu import silu_gate
from ..validation import check_size
from .linear import Linear


class GatedFeedForward(nn.Module):
    """down_proj(activation(gate_proj(x)) * up_proj(x)). Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Activation,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("d_ff", d_ff)
        self.d_model, self.d_ff, self.activation = d_model, d_ff, activation
        self.gate_proj = Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.up_proj = Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.down_proj = Linear(d_ff, d_model, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """The up-projection, scaled elementwise by the activated gate, then the down-projection."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.activation == "silu":  # which has kernels
            return self.down_proj(silu_gate(gate, up))
        return self.down_proj(ACTIVATIONS[self.activation](gate) * up)

    def extra_repr(self) -> str:
        """The activation, for print(model)."""
        return f"activation={self.activation}"
