"""The mesh of processes, and the place of each in it."""

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import ConfigError
from .layout import Layout

AXES = ("pp", "dp", "fsdp", "tp")  # neighbouring ranks, with the fastest links, split the matrices


def make_mesh(layout: Layout, device_type: str = "cpu") -> DeviceMesh:
    """The mesh of a running process group: dimensions "pp", "dp", "fsdp" and "tp", those of size 1 too.

    Raises ConfigError unless the group has as many processes as the layout.
    """
    processes = torch.distributed.get_world_size()
    if processes != layout.world_size:
        raise ConfigError(
            f"dp x fsdp x tp x pp must be the number of processes, but {layout} takes {layout.world_size}, and "
            f"there are {processes}; torchrun --nproc-per-node {layout.world_size} would start as many."
        )
    return init_device_mesh(device_type, tuple(getattr(layout, axis) for axis in AXES), mesh_dim_names=AXES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands in a layout: its coordinate along each axis. It holds no torch object."""

    layout: Layout
    rank: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.layout.world_size:
            raise ConfigError(
                f"the rank must be in [0, {self.layout.world_size}), the processes of {self.layout}, not {self.rank}."
            )

    @property
    def tp(self) -> int:
        """Which part of each layer's matrices it has."""
        return self.rank % self.layout.tp

    @property
    def fsdp(self) -> int:
        """Which shard of the parameters it has."""
        return self.rank // self.layout.tp % self.layout.fsdp

    @property
    def dp(self) -> int:
        """Which copy of the model it belongs to."""
        return self.rank // (self.layout.tp * self.layout.fsdp) % self.layout.dp

    @property
    def pp(self) -> int:
        """Which stage it runs."""
        return self.rank // (self.layout.tp * self.layout.fsdp * self.layout.dp)

    @property
    def data_rank(self) -> int:
        """Which of the `layout.data_ranks` parts of a batch's rows it takes."""
        return self.dp * self.layout.fsdp + self.fsdp
