"""Muon, for matrices that are whole or sharded over processes (DTensor)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..layers.sharded import is_sharded, local_part

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7


class Muon(torch.optim.Muon):
    """m <- mu m + (1 - mu) gradient; weight <- weight - rate * orthogonal((1 - mu) gradient + mu m).

    On whole matrices it is `torch.optim.Muon`, bit for bit. Of a sharded one each process keeps its part of the
    momentum m. The iteration that makes a matrix orthogonal needs all of it, so it is gathered, in bfloat16, in which
    the iteration runs: equal gradients give equal updates, bit for bit, however the matrix is sharded. The processes
    of a mesh share the work: each does it for one matrix in so many, and sends the result to the others.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
    """

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every matrix that has a gradient. Gives what the closure gives, which is called first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            by_mesh: dict[Any, list[Any]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_mesh.setdefault(matrix.device_mesh if is_sharded(matrix) else None, []).append(matrix)
            for mesh, matrices in by_mesh.items():
                for few in _few(matrices, 1 if mesh is None else mesh.size()):
                    directions = [self._direction(matrix, group) for matrix in few]
                    updates = map(orthogonal, directions) if mesh is None else _shared_out(mesh, few, directions)
                    for matrix, update in zip(few, updates, strict=True):
                        rate = group["lr"] * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                        local_part(matrix).mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
        return loss

    def _direction(self, matrix: Any, group: dict[str, Any]) -> Tensor:
        """The momentum with the new gradient in it, and a step further: this process's part of it."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad, memory_format=torch.preserve_format)
        momentum, gradient = local_part(state["momentum_buffer"]), local_part(matrix.grad)
        momentum.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly U V^T, where U S V^T is the matrix, in bfloat16: its singular values are brought to about 1.

    X <- a X + (b X X^T + c (X X^T)^2) X, five times, after X / ||X||.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _shared_out(mesh: Any, matrices: list[Any], directions: list[Tensor]) -> Iterator[Tensor]:
    """This process's parts of the orthogonal updates of as many sharded matrices as the mesh has processes, or fewer.

    The n-th process of the mesh makes the n-th of them orthogonal.
    """
    from torch.distributed.tensor import DTensor, Replicate

    def placed(local: Tensor, matrix: Any, placements: Any) -> DTensor:
        layout = {"shape": matrix.shape, "stride": matrix.stride(), "run_check": False}
        return DTensor.from_local(local, mesh, placements, **layout)

    whole = [
        placed(direction.bfloat16(), matrix, matrix.placements).full_tensor()
        for direction, matrix in zip(directions, matrices, strict=True)
    ]
    workers = torch.cartesian_prod(*map(torch.arange, mesh.shape)).view(-1, mesh.ndim).tolist()
    own = workers.index(list(mesh.get_coordinate()))
    if own < len(whole):
        whole[own] = orthogonal(whole[own])
    for update, worker, matrix in zip(whole, workers, matrices, strict=False):
        update = update.contiguous()
        for axis, coordinate in enumerate(worker):  # along one axis after the other, until every process has it
            torch.distributed.broadcast(update, group=mesh.get_group(axis), group_src=coordinate)
        replicated = placed(update, matrix, [Replicate()] * mesh.ndim)
        yield replicated.redistribute(placements=matrix.placements).to_local()


def _few(matrices: list[Any], count: int) -> Iterator[list[Any]]:
    return (matrices[start : start + count] for start in range(0, len(matrices), count))
