"""Random numbers in place of a block's tables, and of its sines and cosines."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .tensors import held


class OtherAngles(TorchDispatchMode):
    """Random numbers where a sine or a cosine would be."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if str(function.name()).removeprefix("aten::").partition(".")[0] in ("cos", "sin", "polar", "cos_", "sin_"):
            noise = torch.rand(result.shape, generator=self.generator, dtype=torch.float64)
            result.copy_(torch.where(_is_at_zero(result), result, (noise + 0.5).to(result.dtype)))
        return result


@contextlib.contextmanager
def scrambled(block: nn.Module, seed: int) -> Iterator[None]:
    """Other numbers in every floating-point or complex tensor that the block's modules hold beside parameters."""
    tables = [tensor for _, tensor in held(block) if not _is_mask(tensor)]
    kept = [tensor.clone() for tensor in tables]
    generator = torch.Generator().manual_seed(seed)
    for tensor in tables:
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.data.copy_(torch.where(_is_at_zero(tensor), tensor, (noise + 0.5).to(tensor.dtype)))
    try:
        yield
    finally:
        for tensor, old in zip(tables, kept, strict=True):
            tensor.data.copy_(old)


def _is_at_zero(tensor: Tensor) -> Tensor:
    """Where it is the sine or the cosine of position 0: who turns everything by that turns nothing."""
    return (tensor == 0) | (tensor == 1)


def _is_mask(tensor: Tensor) -> bool:
    """Whether it holds two numbers at most, as masks do, and what is multiplied by: no table of angles."""
    return not tensor.is_complex() and tensor.unique().numel() <= 2
