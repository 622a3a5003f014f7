"""Limits on memory, processor time, processes, open files and the size of a file: setrlimit, on every POSIX system."""

import contextlib
import os
import resource
from dataclasses import dataclass

from . import system


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a sandbox gives. Sizes are in bytes."""

    memory: int = 4 << 30  # beside what Python and torch hold already
    open_files: int = 64
    file: int = 16 << 20  # any one file
    folder: int = 64 << 20  # all files of the temporary folder together
    reply: int = 256 << 20
    printed: int = 64 << 10  # what is kept of what is printed; the rest is thrown away


def apply(limits: Limits, seconds: float, held: int) -> list[str]:
    """Set the limits for this process, for good; held is what it holds. Gives a line for each that is refused."""
    processor = int(seconds) + 2
    wanted = {
        "memory": ("RLIMIT_AS", held + limits.memory, 0),
        "processor time": ("RLIMIT_CPU", processor, 1),
        "processes": ("RLIMIT_NPROC", 1, 0),  # counts all of this user's: there can be no new one
        "open files": ("RLIMIT_NOFILE", limits.open_files, 0),
        "the size of a file": ("RLIMIT_FSIZE", limits.file, 0),
        "core dumps": ("RLIMIT_CORE", 0, 0),
    }
    if system.LINUX:
        wanted |= {
            "locked memory": ("RLIMIT_MEMLOCK", 0, 0),
            "message queues": ("RLIMIT_MSGQUEUE", 0, 0),
            "waiting signals": ("RLIMIT_SIGPENDING", 256, 0),
        }
    refused = []
    for what, (name, soft, more) in wanted.items():
        try:
            _lower(getattr(resource, name, -1), soft, soft + more)
        except (OSError, ValueError):
            refused.append(f"no limit on {what}: this system refuses {name}")
    return refused


def _lower(name: int, soft: int, hard: int) -> None:
    _, before = resource.getrlimit(name)
    if before != resource.RLIM_INFINITY:
        hard = min(hard, before)
    resource.setrlimit(name, (min(soft, hard), hard))


def volunteer() -> None:
    """Be the first that the kernel ends when memory is short for everyone."""
    if system.LINUX:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


def held() -> int:
    """The address space that this process has already, in bytes. Not to be had in a file system of its own."""
    if not system.LINUX:
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
