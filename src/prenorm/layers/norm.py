"""RMS normalisation with its weight."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ShapeError
from ..ops.norm import rms_norm
from ..validation import check_number, check_size


class RMSNorm(nn.Module):
    """Normalises vectors to root mean square 1, then scales by `weight` (d_model,), initialised to ones."""

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_number("eps", eps, above=0.0)
        self.d_model, self.eps = d_model, eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """See `prenorm.functional.rms_norm`. Raises ShapeError when the last dim is not d_model."""
        check_width(x, self.d_model)
        return rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"d_model={self.d_model}, eps={self.eps}"


def check_width(x: Tensor, d_model: int) -> None:
    """Raise ShapeError unless the vectors of x have d_model features."""
    if x.shape[-1] != d_model:  # a last dim of 1 would broadcast silently
        raise ShapeError(f"the last dim must be d_model = {d_model}, but x is {tuple(x.shape)}.")
