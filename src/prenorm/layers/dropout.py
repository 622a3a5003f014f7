"""The dropout layer."""

from jaxtyping import Float
from torch import Tensor, nn

from ..ops.dropout import dropout
from ..validation import check_dropout


class Dropout(nn.Module):
    """In training, zeroes elements with probability p and scales the rest by 1 / (1 - p); otherwise the identity."""

    def __init__(self, p: float) -> None:
        super().__init__()
        check_dropout(p)
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """x with dropout applied, in training only."""
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        """The probability, for print(model)."""
        return f"p={self.p}"
