"""Features cut into heads, and heads laid side by side again."""

from jaxtyping import Float
from torch import Tensor


def split_heads(x: Float[Tensor, "*batch seq features"], head_dim: int) -> Float[Tensor, "*batch heads seq head_dim"]:
    """Cut the features into heads."""
    return x.unflatten(-1, (x.shape[-1] // head_dim, head_dim)).transpose(-2, -3)


def merge_heads(x: Float[Tensor, "*batch heads seq head_dim"]) -> Float[Tensor, "*batch seq features"]:
    """Lay the heads side by side again."""
    return x.transpose(-2, -3).flatten(-2)
