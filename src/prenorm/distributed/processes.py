"""This process among those of a run: how it starts and ends with them, and what they agree on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from .launch import AlreadyTold, Launch
from .layout import Layout
from .mesh import Place


class Processes:
    """This process, alone or one of several. Alone, nothing here costs anything, and torch.distributed is not started.

    mesh: None where it is alone.
    """

    def __init__(self, launch: Launch, layout: Layout) -> None:
        self.launch, self.place = launch, Place(layout, launch.rank)
        self.mesh: DeviceMesh | None = None

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

    def first(self, what: str, work: Callable[[], Any]) -> Any:
        """What `work` gives in rank 0, for all processes: the others wait, however long it takes.

        It gives what JSON can hold. A PrenormError of it is raised in all of them.
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


@contextmanager
def started(
    launch: Launch,
    layout: Layout,
    *,
    device_type: str,
    timeout: float,
    say: Callable[[str], None],
    note: Callable[[str], None],
    same: Mapping[str, Any],
) -> Iterator[Processes]:
    """This process, with those that it was launched with. They begin together, and end together.

    same: what must be the same in all of them, which is compared before anything else. say: shows why this process
    ends because of another one. note: writes the details to a log.

    An error that all of them meet is raised in rank 0, and as AlreadyTold in the others. Where one of them alone has an
    error, or dies, or hangs for `timeout` seconds, the others say so and end with the exit code
    `heartbeat.LOST`: a process that waits for a lost one in a collective cannot raise anything.
    Raises ProcessError where they do not find each other.
    """
    if launch.world_size == 1:
        yield Processes(launch, layout)
        return
    from .group import Group  # what one process does not need

    group = Group(launch, layout, timeout=timeout, say=say, note=note)
    try:
        group.compare(same)
        group.connect(device_type)
        yield group
    except BaseException as error:
        if group.failed(error) and not group.is_first:
            raise AlreadyTold(str(error)) from error
        raise
    group.end()
