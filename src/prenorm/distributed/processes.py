"""This process among those of a run, and what they agree on; alone, it agrees with itself."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from .launch import Launch
from .layout import Layout
from .mesh import Place


class Processes:
    """This process, alone or one of several. Alone, nothing here costs anything, and torch.distributed is not started.

    mesh: None where it is alone.
    """

    def __init__(self, launch: Launch, layout: Layout) -> None:
        self.launch, self.place = launch, Place(layout, launch.rank)
        self.mesh: DeviceMesh | None = None

    def __str__(self) -> str:
        place = self.place
        return f"rank {self.rank} of {place.layout}: dp {place.dp}, fsdp {place.fsdp}, tp {place.tp}, pp {place.pp}"

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.launch.rank

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.launch.world_size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes the run's folder and the terminal."""
        return self.rank == 0

    def at(self, step: int, phase: str, *, patient: bool = False) -> None:
        """Note where this process is, for the others to read should it be lost.

        patient: it may take longer than the timeout there.
        """

    def first(self, what: str, work: Callable[[], Any], *, patient: bool = True) -> Any:
        """What `work` gives in rank 0, for all processes, which wait for it.

        It gives what JSON can hold. A PrenormError of it is raised in all of them. patient: it may take longer than the
        timeout.
        """
        return work()

    def compare(self, values: Mapping[str, Any]) -> None:
        """Raise ConfigError, in all processes, unless they all have the same values (as JSON holds them)."""

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes, the same bits in all of them."""
        return list(numbers)

    def largest(self, *numbers: int) -> list[int]:
        """The largest of all processes' numbers, for each of them."""
        return list(numbers)


ALONE = Processes(Launch(), Layout())
