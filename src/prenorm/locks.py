"""File locks, released at the latest when the process ends."""

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: int | IO[Any], *, wait: bool) -> None:
    """Hold the lock on an open file until it is closed. Does nothing on Windows, which has no such locks.

    Raises BlockingIOError if another process holds it and `wait` is False, and OSError on file systems without locks,
    such as some network file systems.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
