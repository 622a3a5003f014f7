"""The numbers of a block: its parameters, what its modules hold beside them, what it gives."""

import dataclasses
import itertools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_MODULE_STATE = frozenset(vars(nn.Module()))


def held(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The numbers that modules hold beside their parameters: buffers, plain attributes, and what dictionaries hold.

    Modules in a plain list are not part of the block, and neither are their parameters: these are among the numbers.
    """
    own = {id(parameter) for parameter in block.parameters()}
    for path, module in block.named_modules():
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            where = f"{path}.{name}" if path else name
            inside = value.values() if isinstance(value, dict) and name not in _MODULE_STATE else [value]
            for one in inside:
                for number, tensor in enumerate(one if isinstance(one, tuple | list) else [one]):
                    if isinstance(tensor, nn.Module):
                        named = tensor.named_parameters(prefix=f"{where}.{number}")
                        yield from ((name, parameter) for name, parameter in named if id(parameter) not in own)
                    is_number = isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())
                    if is_number and not isinstance(tensor, nn.Parameter) and tensor.numel():
                        yield where, tensor


def set_values(block: nn.Module, values: dict[str, Tensor]) -> None:
    settable = dict(held(block)) | dict(block.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in values.items():
            settable[name].copy_(value)


def listed(named: Iterator[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    first: dict[int, str] = {}
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "device": tensor.device.type,
            "requires_grad": tensor.requires_grad,
            "same_as": first.setdefault(id(tensor), name),
        }
        for name, tensor in named
        if tensor is not None
    ]


def first_tensor(y: Any, shape: torch.Size) -> Tensor:
    """The output: of several tensors that a block may give, the first of its input's shape, or else the first."""
    found = list(itertools.islice(_tensors(y), 16))
    if not found:
        raise TypeError(f"forward must give a tensor, but it gave {type(y).__name__}")
    return next((one for one in found if one.shape == shape), found[0])


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth < 4:
        for one in _inside(value):
            yield from _tensors(one, depth + 1)


def _inside(value: Any) -> list[Any]:
    """What a container holds, in its order: a tuple, a list, a dictionary, a record."""
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name) for one in dataclasses.fields(value)]
    return list(vars(value).values()) if isinstance(value, types.SimpleNamespace) else []


def plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().clone()
