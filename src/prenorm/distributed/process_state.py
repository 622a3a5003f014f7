"""Which process a rank is, whether it is still there, and how it is ended once it hangs: on this machine, on Linux."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """A process: its machine as this kernel and namespace of process numbers, "" where unknown, and when it began."""

    machine: str
    pid: int
    began: str


def own_identity() -> Identity:
    """This process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return Identity(f"{boot} {os.stat('/proc/self/ns/pid').st_ino}", os.getpid(), _status(os.getpid())[1])
    except (OSError, IndexError):
        return Identity("", os.getpid(), "")


def is_gone(process: Identity, here: Identity) -> bool:
    """Whether a process of this machine has ended; of another machine nobody can say, so no."""
    if not here.machine or process.machine != here.machine:
        return False
    try:
        state, began = _status(process.pid)
    except FileNotFoundError:
        return True
    except (OSError, IndexError):
        return False
    return began != process.began or state in "ZX"  # ended, and its parent has not asked yet


def is_stopped(process: Identity, here: Identity) -> bool:
    """Whether a process of this machine is stopped, by SIGSTOP or a debugger: it would end only once it is woken."""
    if not here.machine or process.machine != here.machine:
        return False
    with suppress(OSError, IndexError):
        state, began = _status(process.pid)
        return began == process.began and state in "Tt"
    return False


def end(process: Identity, here: Identity) -> None:
    """Kill a process of this machine that hangs: it must not go on later, nor keep its memory and its locks."""
    if process.machine == here.machine and not is_gone(process, here):
        with suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)


def _status(pid: int) -> tuple[str, str]:
    """The state of a process, and when it began: the number of a process is given to another one later."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]
