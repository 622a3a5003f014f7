"""How the processes of a run begin together, and end together."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .launch import AlreadyTold, Launch
from .layout import Layout
from .processes import Processes


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
