"""Reading from a place in an open file, which several threads may do at once where the system allows it."""

import os
from typing import BinaryIO

from ..errors import CheckpointError

IN_THREADS = hasattr(os, "preadv")  # Windows has one place in an open file, which threads would move for each other


def fill(file: BinaryIO, place: int, room: memoryview, source: str) -> None:
    """Read from a place on as many bytes as there is room for. A system may give fewer at once.

    Raises CheckpointError, which begins with `source`, where the file ends before.
    """
    while len(room):
        count = _read_at(file, place, room)
        if not count:
            raise CheckpointError(f"{source}: the file became shorter while it was read; open the folder again.")
        room, place = room[count:], place + count


def _read_at(file: BinaryIO, place: int, room: memoryview) -> int:
    if IN_THREADS:
        return os.preadv(file.fileno(), [room], place)
    file.seek(place)
    return int(file.readinto(room))  # type: ignore[attr-defined]
