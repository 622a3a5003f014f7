"""The feed-forward layer of two matrices, with any activation, with or without biases."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..family import Activation
from ..ops.activations import ACTIVATIONS
from ..validation import check_size
from .linear import Linear


class TwoMatrices(nn.Module):
    """down_proj(activation(up_proj(x))). Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.3."""

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
        self.up_proj = Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.down_proj = Linear(d_ff, d_model, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """Up-projection, activation, down-projection."""
        return self.down_proj(ACTIVATIONS[self.activation](self.up_proj(x)))

    def extra_repr(self) -> str:
        """The activation, for print(model)."""
        return f"activation={self.activation}"
