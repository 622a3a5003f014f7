"""The gradient of a whole run: the norm over all its parts, and the mean over all its targets."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ..layers.sharded import local_part


def loss_share(targets: int | Tensor, mesh: DeviceMesh) -> float:
    """What a rank multiplies the mean loss over its targets by, so that averaged gradients are those of the whole mean.

    It is targets / (targets of all ranks that differ in dp or fsdp) x (number of these ranks). Rows with uneven numbers
    of targets, as packed documents have, then count as they do in one process. All ranks call it together.
    """
    ranks = 1
    everywhere = torch.tensor(int(targets), device=mesh.device_type)
    for axis in ("dp", "fsdp"):
        if axis in (mesh.mesh_dim_names or ()) and mesh[axis].size() > 1:
            ranks *= mesh[axis].size()
            dist.all_reduce(everywhere, group=mesh.get_group(axis))
    return int(targets) * ranks / max(1, int(everywhere))


def clip_grad_norm_(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    mesh: DeviceMesh | None = None,
    *,
    counted_elsewhere: Iterable[nn.Parameter] = (),
) -> Tensor:
    """Scale the gradients down to a norm of at most max_norm, all together, and give the norm that they had.

    It is the norm over all processes: of a DTensor each part counts once, and with a mesh that has a dim "pp" the
    stages are summed. counted_elsewhere: parameters whose gradient another stage counts. All ranks call it together.
    """
    parameters = [one for one in parameters if one.grad is not None]
    norm = _norm(parameters, mesh, {id(one) for one in counted_elsewhere})
    if math.isfinite(max_norm):
        grads = [local_part(one.grad) for one in parameters if one.grad is not None]
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale.to(grad.dtype))
    return norm


def _norm(parameters: list[nn.Parameter], mesh: DeviceMesh | None, skipped: set[int]) -> Tensor:
    """The norm of all gradients. Squares are summed in float64, in which the order of the terms does not matter."""
    squares: dict[tuple[ProcessGroup, ...], list[Tensor]] = defaultdict(list)  # by the groups to sum over
    device, dtype = ("cpu", torch.float32) if not parameters else (parameters[0].device, parameters[0].dtype)
    for parameter in parameters:
        grad = parameter.grad
        if grad is None or id(parameter) in skipped:
            continue
        norm = torch.linalg.vector_norm(local_part(grad), dtype=torch.promote_types(grad.dtype, torch.float32))
        squares[_sharding_groups(grad)].append(norm.double().square())
    total = torch.zeros((), dtype=torch.float64, device=device)
    for groups, terms in squares.items():
        part = torch.stack(terms).sum()
        for group in groups:
            dist.all_reduce(part, group=group)
        total += part
    if mesh is not None and "pp" in (mesh.mesh_dim_names or ()) and mesh["pp"].size() > 1:
        dist.all_reduce(total, group=mesh.get_group("pp"))
    return total.sqrt().to(torch.promote_types(dtype, torch.float32))


def _sharding_groups(grad: Tensor) -> tuple[ProcessGroup, ...]:
    """The groups of processes that have different parts of a gradient."""
    if not isinstance(grad, DTensor):
        return ()
    sharded = (dim for dim, placement in enumerate(grad.placements) if not placement.is_replicate())
    return tuple(grad.device_mesh.get_group(dim) for dim in sharded)
