"""Layer normalisation with its weight and bias."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.layer_norm import layer_norm
from ..validation import check_number, check_size
from .norm import check_width


class LayerNorm(nn.Module):
    """Normalises vectors to mean 0 and variance 1, then scales by `weight` and shifts by `bias`, both (d_model,)."""

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_number("eps", eps, above=0.0)
        self.d_model, self.eps = d_model, eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the weight to ones and the bias to zeros."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """See `prenorm.functional.layer_norm`. Raises ShapeError when the last dim is not d_model."""
        check_width(x, self.d_model)
        return layer_norm(x, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"d_model={self.d_model}, eps={self.eps}"
