"""The token embedding: one row of weights per token id."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..ops.integers import check_integers
from ..ops.ranges import check_range
from ..validation import check_size
from .truncated_normal import truncated_normal_


class Embedding(nn.Module):
    """Row `id` of weight (vocab_size, d_model) for each token id. Initialised from a truncated standard normal."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("vocab_size", vocab_size)
        check_size("d_model", d_model)
        self.vocab_size, self.d_model = vocab_size, d_model
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the rows at random."""
        truncated_normal_(self.weight, 1.0)

    def forward(self, token_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """The rows of these ids. Raises ShapeError, and RangeError for an id outside [0, vocab_size)."""
        check_integers("token ids", token_ids, device=self.weight.device)
        rule = f"token ids must be in [0, vocab_size) = [0, {self.vocab_size})"
        check_range(token_ids, self.vocab_size, what="the token ids", rule=rule)
        return torch.nn.functional.embedding(token_ids, self.weight)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"vocab_size={self.vocab_size}, d_model={self.d_model}"
