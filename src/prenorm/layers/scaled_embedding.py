"""The token embedding, scaled by a constant."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .embedding import Embedding


class ScaledEmbedding(Embedding):
    """Row `id` of weight, times `scale`. A tied head uses the weight without the scale."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        scale: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(vocab_size, d_model, device=device, dtype=dtype)
        self.scale = scale

    def forward(self, token_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """The rows of these ids, scaled in float32 or wider. Raises as `Embedding` does."""
        rows = super().forward(token_ids)
        wide = torch.promote_types(rows.dtype, torch.float32)
        return (rows.to(wide) * self.scale).to(rows.dtype)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"{super().extra_repr()}, scale={self.scale}"
