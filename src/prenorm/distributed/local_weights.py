"""Weights that are DTensors between calls, and the rank's own plain tensors while a layer computes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from ..errors import ConfigError
from . import collectives

Local = Callable[[DTensor], Tensor]


class Weight(NamedTuple):
    """A weight of a module, by name, and what the rank computes with."""

    module: nn.Module
    name: str
    local: Local


def distribute(module: nn.Module, name: str, mesh: DeviceMesh, dim: int | None = None) -> None:
    """Make a module's parameter a DTensor: split along a dim, or None: the same on all ranks, which have it whole."""
    whole = module._parameters[name]
    if whole is None or isinstance(whole, DTensor):
        return
    part, placement = whole.detach(), Replicate()
    if dim is not None:
        mine = collectives.chunk_of(whole.shape[dim], mesh.get_group())
        # A copy: a view would keep all of the whole's memory.
        part, placement = part.narrow(dim, mine.start, mine.stop - mine.start).clone(), Shard(dim)  # type: ignore[assignment]
    placements: list[Placement] = [placement]
    size = {"shape": whole.shape, "stride": whole.contiguous().stride()}
    distributed = DTensor.from_local(part.contiguous(), mesh, placements, run_check=False, **size)  # type: ignore[arg-type]
    module._parameters[name] = nn.Parameter(distributed, requires_grad=whole.requires_grad)


def own(weight: DTensor) -> Tensor:
    """The rank's part; or the whole, which all ranks use for the same."""
    return weight.to_local()


def for_a_term(weight: DTensor) -> Tensor:
    """A whole weight that each rank uses on its part of the heads, features or tokens.

    The gradients are summed, in float32 or wider.
    """
    local = weight.to_local()
    wide = local.to(torch.promote_types(local.dtype, torch.float32))
    return collectives.copy(wide, weight.device_mesh.get_group("tp")).to(local.dtype)


def on_first_rank(weight: DTensor) -> Tensor:
    """A whole bias that is added to terms which are summed: one rank adds it, the others zeros."""
    bias = for_a_term(weight)
    return bias if weight.device_mesh.get_local_rank("tp") == 0 else bias * 0


@contextmanager
def computing_with(weights: Iterable[Weight]) -> Iterator[None]:
    """Context manager: the modules have plain tensors of this rank in their parameters' places."""
    stored: list[tuple[dict[str, Any], str, Any, Local]] = [
        (module._parameters, name, module._parameters[name], local) for module, name, local in weights
    ]
    try:
        for parameters, name, parameter, local in stored:
            if isinstance(parameter, DTensor):
                parameters[name] = local(parameter)
        yield
    finally:
        for parameters, name, parameter, _ in stored:
            parameters[name] = parameter


def parameters_of(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Each parameter of a module and those below it: who has it, and under which name."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                yield part, name


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """Have the module run another forward: its class, its name and its hooks stay. Raises ConfigError if one has."""
    if "forward" in vars(module):
        raise ConfigError(
            f"a module can be split once, but the forward of this {type(module).__name__} is replaced already; split a "
            "new one."
        )
    module.forward = forward
    return module
