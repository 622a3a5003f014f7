"""Absolute positions, added to embeddings: fixed sines and cosines, or a learned vector per position."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.integers import check_integers
from ..ops.position_checks import check_positions
from ..ops.positions import sinusoidal_positions
from ..validation import check_size
from .embedding import Embedding


class SinusoidalPositions(nn.Module):
    """x plus sines and cosines of each token's position; no weights. See `prenorm.functional.sinusoidal_positions`."""

    def __init__(self, d_model: int, max_seq_len: int) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("max_seq_len", max_seq_len)
        if d_model % 2:
            raise ConfigError(
                f"d_model must be even, because positions are pairs of a sine and a cosine, but it is {d_model}; "
                f"d_model={d_model + 1} would do."
            )
        self.d_model, self.max_seq_len = d_model, max_seq_len

    def forward(
        self, x: Float[Tensor, "*batch seq {self.d_model}"], token_positions: Int[Tensor, "*positions seq"]
    ) -> Float[Tensor, "*batch seq {self.d_model}"]:
        """Add the positions, in float32 or wider; y has the dtype of x. Raises RangeError beyond max_seq_len."""
        check_integers("token_positions", token_positions)
        check_positions(token_positions, self.max_seq_len)
        wide = torch.promote_types(x.dtype, torch.float32)
        return (x + sinusoidal_positions(token_positions, self.d_model, dtype=wide)).to(x.dtype)


class LearnedPositions(nn.Module):
    """x + row `position` of weight (max_seq_len, d_model). Source: Gehring et al. 2017, arXiv:1705.03122."""

    def __init__(
        self,
        d_model: int,
        max_seq_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.max_seq_len = d_model, max_seq_len
        self.embedding = Embedding(max_seq_len, d_model, device=device, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "*batch seq {self.d_model}"], token_positions: Int[Tensor, "*positions seq"]
    ) -> Float[Tensor, "*batch seq {self.d_model}"]:
        """Add the positions. Raises RangeError beyond max_seq_len."""
        check_integers("token_positions", token_positions)
        check_positions(token_positions, self.max_seq_len)
        return x + self.embedding(token_positions)
