"""RMS normalisation that multiplies by 1 + weight."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.norm import rms_norm
from .norm import RMSNorm, check_width


class OnePlusRMSNorm(RMSNorm):
    """Normalises vectors to root mean square 1, then scales by 1 + `weight`, initialised to zeros (Gemma)."""

    def reset_parameters(self) -> None:
        """Set the weight to zeros."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """See `prenorm.functional.rms_norm`. 1 + weight is computed in float32 or wider."""
        check_width(x, self.d_model)
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return rms_norm(x, 1 + self.weight.to(wide), eps=self.eps)
