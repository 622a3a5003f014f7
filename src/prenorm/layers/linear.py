"""The linear layer."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.linear import linear
from ..validation import check_flag, check_size
from .truncated_normal import truncated_normal_


class Linear(nn.Module):
    """y = x W^T (+ b), with weight (out_features, in_features) and, by default, no bias.

    Initialised from a truncated normal with variance 2 / (in_features + out_features) (Glorot and Bengio 2010).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("in_features", in_features)
        check_size("out_features", out_features)
        check_flag("bias", bias)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the weight at random and the bias to zero."""
        std = math.sqrt(2 / (self.in_features + self.out_features))
        truncated_normal_(self.weight, std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight, and of the output."""
        return self.weight.dtype

    def forward(self, x: Float[Tensor, "*batch {self.in_features}"]) -> Float[Tensor, "*batch {self.out_features}"]:
        """See `prenorm.functional.linear`."""
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
