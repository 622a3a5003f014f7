"""The first weights of a model that is spread over processes before it has any, so that no process has it whole."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..layers.sharded import local_part
from .checkpoints import region_of

SAMPLE = 256  # numbers of each weight


@torch.no_grad()
def fill(model: nn.Module, weights: Iterable[tuple[str, Tensor]], device: torch.device | str) -> str:
    """Give a model without data (meta) memory on a device, and of each of these whole weights this process's part.

    Weights that it has nothing of are other processes', and left out. Its weights that do not come are not initialised.
    Gives a hash of some numbers of every weight, which is the same in all processes that got the same weights.
    """
    model.to_empty(device=device)
    mine, seen = dict(model.named_parameters()), hashlib.sha256()
    for name, whole in weights:
        seen.update(_some_of(whole))
        if name in mine:
            region = region_of(name, mine[name])
            local_part(mine[name]).copy_(whole[tuple(slice(*axis) for axis in region)])
        del whole  # before the next one is drawn
    return seen.hexdigest()


def _some_of(weight: Tensor) -> bytes:
    numbers = weight.detach().reshape(-1)
    return numbers[:: max(1, len(numbers) // SAMPLE)].double().numpy().tobytes()
