"""The process between the server and a confined child: it starts the child, waits for its end, and sees to that end.

It runs none of the learner's code. Its lifeline is a pipe that only the parent holds the other end of: when that is
closed, on purpose or because the parent is no more, the child is killed with everything that it has started. Then the
child's temporary folder is removed, which takes as long as it took to fill.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import time
from collections.abc import Callable

from . import namespaces, system
from .confine import Plan

REQUESTS, REPLIES, STATUS, LIFELINE = 3, 4, 5, 6  # file descriptors, here and in the child
_TICK = 20  # milliseconds
_GRACE = 1.0  # seconds that the parent has to end the child itself
_MOST_FILES = 4096  # in a folder that is not in memory, as in one that is
_LONGEST_PATH = 2000  # what lies deeper than the system's longest path could not be counted


def keep(plan: Plan, descriptors: list[int], start: Callable[[bool], None]) -> None:
    """Fork, call start(has_namespaces) in the child, and return when the child and all that is its own have ended.

    descriptors: where the child's output goes, then the four named above.
    """
    _arrange(descriptors)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    has_namespaces = system.LINUX and "namespaces" not in plan.without and namespaces.enter()
    if system.LINUX:
        system.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: whoever loses its parent becomes a child of this process
    child = os.fork()
    if child == 0:
        try:
            if system.LINUX:
                system.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            os.setsid()
            os.close(LIFELINE)
            start(has_namespaces)
            os._exit(0)
        finally:
            os._exit(1)
    if system.LINUX:
        system.prctl(4, 0)  # PR_SET_DUMPABLE: no other process of this user looks into this one
    for descriptor in (1, 2, REQUESTS, REPLIES):
        os.close(descriptor)
    _report(_wait(child, plan))
    _kill_the_rest(child)
    _remove(plan.scratch)


def _arrange(descriptors: list[int]) -> None:
    clear = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in descriptors]
    output, *others = clear
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for place, descriptor in zip((REQUESTS, REPLIES, STATUS, LIFELINE), others, strict=True):
        os.dup2(descriptor, place)
    os.closerange(LIFELINE + 1, os.sysconf("SC_OPEN_MAX"))


def _wait(child: int, plan: Plan) -> str:
    lifeline = select.poll()
    lifeline.register(LIFELINE, select.POLLIN)
    deadline = time.monotonic() + plan.seconds + _GRACE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"it exited with status {code}" if code >= 0 else f"it was killed by {signal.Signals(-code).name}"
        if lifeline.poll(_TICK) or time.monotonic() > deadline:
            reason = "the time was up"
        elif _is_too_full(plan):
            reason = "its temporary folder was too full"
        else:
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return reason


def _is_too_full(plan: Plan) -> bool:
    """Whether the child's folder holds too much. A folder in memory bounds itself, and is not even seen from here."""
    size = count = 0
    folders = [plan.scratch]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                count += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if size > plan.limits.folder or count > _MOST_FILES or len(entry.path) > _LONGEST_PATH:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return False


def _report(ended: str) -> None:
    with contextlib.suppress(OSError):
        os.write(STATUS, json.dumps({"ended": ended}).encode() + b"\n")


def _kill_the_rest(child: int) -> None:
    """End what the child left behind: a process namespace ends with its first process, without one this looks."""
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        for process in _children():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def _remove(folder: str) -> None:
    """Remove folder and all in it, however deep: shutil.rmtree would need a descriptor and a frame for every level."""
    os.chdir(folder)
    way = []
    while True:
        if (inner := _first_folder_after_removing_files()) is not None:
            os.chmod(inner, 0o700)
            os.chdir(inner)
            way.append(inner)
        elif way:
            os.chdir("..")
            os.rmdir(way.pop())
        else:
            break
    os.chdir("/")
    os.rmdir(folder)


def _first_folder_after_removing_files() -> str | None:
    with os.scandir(".") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            os.unlink(entry.name)
    return None


def _children() -> list[int]:
    own = os.getpid()
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == own:
                        found.append(int(name))
    return found
