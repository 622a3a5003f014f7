"""Locks on files, which end with the process that holds them."""

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: int | IO[Any], *, wait: bool) -> None:
    """Hold the lock on an open file until it is closed. On Windows, which has none of this kind, nothing happens.

    Raises BlockingIOError where another process holds it and `wait` is False, and OSError where there are no locks, as
    on some network file systems.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
