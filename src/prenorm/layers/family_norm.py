"""The norms of families: RMSNorm or LayerNorm, with 1 + weight, without a bias, without weights, or head by head."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..family import Family
from ..validation import check_number, check_size
from .norm import RMSNorm, check_width
from .one_plus_norm import OnePlusRMSNorm


def family_norm(
    family: Family,
    d_model: int,
    eps: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The norm that a family's record specifies."""
    if family.norm != "rms":
        return FamilyLayerNorm(family, d_model, eps, device=device, dtype=dtype)
    made = OnePlusRMSNorm if family.one_plus_norms else RMSNorm
    return made(d_model, eps, device=device, dtype=dtype)


class FamilyLayerNorm(nn.Module):
    """Normalises vectors to mean 0 and variance 1, then applies the family's weight and bias, if it has them.

    Source: Ba et al. 2016, arXiv:1607.06450; 1 + weight: Nemotron.
    """

    def __init__(
        self,
        family: Family,
        d_model: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_number("eps", eps, above=0.0)
        self.d_model, self.eps, self.one_plus = d_model, eps, family.one_plus_norms
        self.weight = self.bias = None
        if family.norm != "layer_bare":
            self.weight = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        if family.norm == "layer":
            self.bias = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight so that it multiplies by 1, and the bias to zeros."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.0 if self.one_plus else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*batch {self.d_model}"]) -> Float[Tensor, "*batch {self.d_model}"]:
        """Normalise in float32 or wider; y has the dtype of x. Raises ShapeError when the last dim is not d_model."""
        check_width(x, self.d_model)
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if one is None else one.to(wide) for one in (self.weight, self.bias))
        weight = 1 + weight if self.one_plus and weight is not None else weight
        return torch.nn.functional.layer_norm(x.to(wide), (self.d_model,), weight, bias, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"d_model={self.d_model}, eps={self.eps}"


class PerHeadLayerNorm(nn.Module):
    """Every head's vector brought to mean 0 and variance 1, then scaled by a weight of that head.

    Source: Dehghani et al. 2023, arXiv:2302.05442, section 2.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("num_heads", num_heads)
        check_size("head_dim", head_dim)
        check_number("eps", eps, above=0.0)
        self.num_heads, self.head_dim, self.eps = num_heads, head_dim, eps
        # A vector for each head: to an optimiser, a (heads, head_dim) tensor would look like a matrix.
        self.weights = nn.ParameterList(torch.ones(head_dim, device=device, dtype=dtype) for _ in range(num_heads))

    def reset_parameters(self) -> None:
        """Set the weights to ones."""
        for weight in self.weights:
            nn.init.ones_(weight)

    def forward(
        self, x: Float[Tensor, "*batch {self.num_heads} seq {self.head_dim}"]
    ) -> Float[Tensor, "*batch {self.num_heads} seq {self.head_dim}"]:
        """Normalise in float32 or wider; y has the dtype of x."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = torch.stack(list(self.weights)).to(wide)[:, None]  # heads 1 head_dim
        normed = torch.nn.functional.layer_norm(x.to(wide), (self.head_dim,), None, None, self.eps)
        return (normed * weight).to(x.dtype)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, eps={self.eps}"
