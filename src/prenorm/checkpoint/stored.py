"""How our tensors lie in those of a folder: one in one, or several in one, below each other, transposed or in turn."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from .names import Parameter


def parts_of_stored(parameters: Iterable[Parameter]) -> dict[str, list[Parameter]]:
    """The tensors of a folder by name, and the parameters that each holds, in their order."""
    parts: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        parts.setdefault(parameter.hugging_face, []).append(parameter)
    return parts


def stored_shapes(parameters: Iterable[Parameter]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a folder."""
    return {name: _shape(parts) for name, parts in parts_of_stored(parameters).items()}


def kept_as_stored(parameters: Iterable[Parameter]) -> set[str]:
    """The names of a folder's tensors that `split` gives as they are."""
    parts = parts_of_stored(parameters)
    return {name for name, each in parts.items() if len(each) == 1 and each[0].lies == "rows"}


def join(parts: Sequence[Parameter], tensors: Sequence[Tensor], head_dim: int) -> Shaped[Tensor, "*stored"]:
    """The tensor of a folder that holds these parts, whose tensors are given."""
    match parts[0].lies:
        case "row":
            return torch.stack(list(tensors))
        case "columns":
            return torch.cat(list(tensors)).T.contiguous()
        case "heads":
            heads = [tensor.unflatten(0, (-1, head_dim)) for tensor in tensors]
            return torch.stack(heads, dim=1).flatten(0, 2)
        case _:
            return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def split(parts: Sequence[Parameter], stored: Shaped[Tensor, "*stored"], head_dim: int) -> list[Tensor]:
    """The tensors of the parts in one of a folder. None shares memory with another."""
    rows = [part.shape[0] for part in parts]
    match parts[0].lies:
        case "row":
            return [row.clone() for row in stored]
        case "columns":
            return [part.T.contiguous() for part in stored.split(rows, dim=1)]
        case "heads":
            each = stored.unflatten(0, (-1, len(parts), head_dim))
            return [each[:, number].flatten(0, 1).clone() for number in range(len(parts))]
        case _:
            return [stored] if len(parts) == 1 else [part.clone() for part in stored.split(rows)]


def _shape(parts: Sequence[Parameter]) -> tuple[int, ...]:
    rows, *others = parts[0].shape
    if parts[0].lies == "row":
        return (len(parts), rows)
    rows = sum(part.shape[0] for part in parts)
    return (*others, rows) if parts[0].lies == "columns" else (rows, *others)
