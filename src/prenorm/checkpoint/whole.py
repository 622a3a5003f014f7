"""The tensors of a model as they are saved: whole, plain and with data, whatever the model was put into."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..layers.sharded import is_sharded


def whole_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with plain tensors. What is sharded over processes (DTensor) is gathered, on the CPU.

    All processes call this together, and all get everything. Raises CheckpointError, by name, for tensors without data
    (meta), wrappers whose numbers are something else (quantised subclasses), sparse ones, and parametrised weights.
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
    """Whether this process writes what all of them have gathered. The others wait until it is written."""
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
            f"{name} is what a parametrised weight is made of, not the weight; "
            f"torch.nn.utils.parametrize.remove_parametrizations of {module or 'the model'} leaves the weight itself"
        )
    if tensor.is_meta:
        return f"{name} is on the meta device and has no data; load or initialise the model first"
    if tensor.layout != torch.strided:
        return f"{name} is {str(tensor.layout).removeprefix('torch.')}; .to_dense() makes it a plain tensor"
    if not is_sharded(tensor) and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return (
            f"{name} is a {type(tensor).__name__}, whose numbers only its own code knows; save the model that it was "
            "made of, or put plain tensors in its place"
        )
    return None
