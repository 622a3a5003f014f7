"""The tensors of a model as they are saved: gathered, plain and with data, whatever wraps the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..layers.sharded import is_sharded


def whole_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with plain tensors. Sharded tensors (DTensor) are gathered, on the CPU.

    All processes must call this together, and each gets all tensors. Raises CheckpointError, by name, for tensors
    without data (meta), subclasses with their own storage format (quantised ones), sparse tensors, and parametrised
    weights.
    """
    problems = [problem for name, tensor in state_dict.items() if (problem := _why_not(name, tensor))]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"the model to save: {'; '.join(problems[:3])}{more}.")
    return {
        name: tensor.full_tensor().cpu() if is_sharded(tensor) else tensor.as_subclass(Tensor)  # type: ignore[attr-defined]
        for name, tensor in state_dict.items()
    }


@contextmanager
def written_once(state_dict: Mapping[str, Tensor]) -> Iterator[bool]:
    """Whether this process is the one that writes the gathered tensors. The others wait until they are written."""
    mesh: Any = next((tensor.device_mesh for tensor in state_dict.values() if is_sharded(tensor)), None)  # type: ignore[attr-defined]
    if mesh is None:
        yield True
        return
    try:
        yield not any(mesh.get_coordinate())
    finally:
        for dim in range(mesh.ndim):
            torch.distributed.barrier(mesh.get_group(dim))


def _why_not(name: str, tensor: Tensor) -> str | None:
    if ".parametrizations." in f".{name}":
        module = name.partition("parametrizations.")[0].removesuffix(".")
        return (
            f"{name} is an input of a parametrisation, not the weight itself; apply "
            f"torch.nn.utils.parametrize.remove_parametrizations to {module or 'the model'}"
        )
    if tensor.is_meta:
        return f"{name} is on the meta device and has no data; load or initialise the model first"
    if tensor.layout != torch.strided:
        return f"{name} is {str(tensor.layout).removeprefix('torch.')}; .to_dense() makes it a plain tensor"
    if not is_sharded(tensor) and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return (
            f"{name} is a {type(tensor).__name__}, whose storage format is known only to its own code; save the "
            "original model, or replace it by a plain tensor"
        )
    return None
