"""The sequence split between the ranks that split the layers: a DTensor, so that its shape is still the whole one's.

What stands between the layers (norms, dropout, residual sums) then works on a part of the tokens on each rank. A plain
tensor is whole on every rank: a layer takes either, and gives back the same kind.
Source: Korthikanti et al. 2022, arXiv:2205.05198.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ..errors import ConfigError
from . import collectives

DIM = -2  # (..., seq, d_model)


def is_split(x: object) -> bool:
    """Whether x is a sequence that is split. Raises ConfigError for a DTensor that is spread otherwise."""
    if not isinstance(x, DTensor):
        return False
    if x.ndim < 2 or tuple(x.placements) != (Shard(x.ndim + DIM),):
        raise ConfigError(
            f"a layer takes plain tensors, and sequences split along Shard(-2) over one dim of a mesh, but this "
            f"DTensor of shape {tuple(x.shape)} has {x.placements}; x.full_tensor() is plain."
        )
    return True


def can_split(x: Tensor, mesh: DeviceMesh) -> bool:
    """Whether there is a token for each rank; a shorter sequence, as in decoding, stays whole."""
    return x.shape[DIM] >= mesh.size()


def as_split(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """A whole sequence, split."""
    return x if is_split(x) else wrap(collectives.split(x, mesh.get_group(), DIM), x.shape, mesh)


def as_whole(x: Any) -> Any:
    """A sequence that may be split, whole; anything else as it is."""
    return collectives.join(x.to_local(), x.device_mesh.get_group(), DIM, x.shape[DIM]) if is_split(x) else x


def wrap(part: Tensor, shape: tuple[int, ...], mesh: DeviceMesh) -> Tensor:
    """The split sequence of this shape, of which this rank has `part`."""
    stride = [math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape))]
    placements = [Shard(len(shape) + DIM)]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(stride))
