"""Random inputs, and what Hypothesis chooses among."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from .formulas import Array
from .tolerance import array

Module = TypeVar("Module", bound=nn.Module)

LAYOUTS = ("contiguous", "transposed", "every second", "offset")

seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
layouts = st.sampled_from(LAYOUTS)
leadings = st.sampled_from([(), (1,), (3,), (2, 3), (0,), (2, 0)])  # the dims before (seq, d_model)
sizes = st.integers(1, 9)
seqs = st.integers(1, 7)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, layout: str = "contiguous") -> Tensor:
    """Standard normal numbers, the same for the same seed, laid out in memory as asked."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return lay_out(numbers, layout)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "transposed" and x.ndim >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "every second":
        return torch.stack((x, x + 1), dim=-1)[..., 0]
    if layout == "offset":
        return (
            torch.cat((x[None], x[None] + 1))[0] if x.ndim == 0 else torch.cat((x + 1, x), dim=-1)[..., x.shape[-1] :]
        )
    return x.contiguous()


def integers(*shape: int, limit: int, seed: int = 0) -> Tensor:
    """Integers in [0, limit), unsorted and repeated as chance has it."""
    return torch.randint(limit, shape, generator=torch.Generator().manual_seed(seed))


def mask_of(*shape: int, seed: int = 0) -> Tensor:
    """A boolean mask with about two thirds True; where it has several rows the first is empty."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 2 / 3
    if shape[-2] > 1:
        mask[..., 0, :] = False
    return mask


def segments(runs: Sequence[tuple[int, int]]) -> Tensor:
    """One row of segment ids from runs of (id, length)."""
    return torch.tensor([identity for identity, length in runs for _ in range(length)], dtype=torch.int64)


# A row of packed documents: ids in any order, repeated, negative for padding.
rows_of_segments = st.lists(st.tuples(st.integers(-2, 3), st.integers(1, 4)), min_size=1, max_size=5).map(segments)


def randomise(module: Module, seed: int = 0) -> Module:
    """Give every parameter random numbers: norm weights near 1 and biases too, so that none can go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            numbers = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + numbers / 4 if parameter.ndim == 1 else numbers / parameter.shape[-1] ** 0.5)
    return module


def weights_of(module: nn.Module) -> dict[str, Array]:
    """The state dict as the oracle wants it."""
    return {name: array(weight) for name, weight in module.state_dict().items()}


def ids_of(x: Tensor | None) -> NDArray[np.int64] | None:
    """Token ids, positions or masks for the oracle."""
    return None if x is None else x.numpy()
