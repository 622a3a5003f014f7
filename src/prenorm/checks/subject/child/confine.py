"""Everything that holds a child back, one layer after the other; what this system cannot do is said, not skipped."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from . import landlock, limits, namespaces, seccomp, system

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one child may do. Paths are absolute and without symbolic links."""

    readable: tuple[str, ...]
    hidden: tuple[str, ...]  # not readable, though within something readable
    scratch: str  # the one folder to write in, empty
    seconds: float
    limits: limits.Limits
    without: frozenset[str] = frozenset()  # layers to leave out: what tests of the others need


def confine(plan: Plan, *, has_namespaces: bool) -> list[str]:
    """Confine this process, for good. Gives what holds it and what does not, one plain line each."""
    held = limits.held()
    limits.volunteer()
    lines = []
    if has_namespaces:
        lines.append("namespaces: no network, and no process but its own")
    has_view = has_namespaces and "mounts" not in plan.without and _narrow(plan, lines)
    if not has_view:
        lines.append("no file system of its own: names, sizes and times of files outside can be asked for")
    refused = limits.apply(plan.limits, plan.seconds, held)
    is_root = os.getuid() == 0
    namespaces.drop_privileges()
    if system.LINUX:
        system.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
        system.prctl(4, 0)  # PR_SET_DUMPABLE: where cores go to a program, the limit on their size is not asked
    _landlock(plan, lines, has_view=has_view)
    has_seccomp = _seccomp(plan, lines)
    if not has_namespaces:
        lines.append("no namespaces: the network and other processes are kept away by the other layers alone")
    if not has_seccomp:
        lines += _without_seccomp(has_namespaces=has_namespaces, is_root=is_root)
    megabytes = {name: getattr(plan.limits, name) >> 20 for name in ("memory", "file", "folder")}
    lines.append(
        f"limits: {megabytes['memory']} MiB of memory, {plan.seconds:.0f} s, {plan.limits.open_files} open files, "
        f"{megabytes['file']} MiB in a file, {megabytes['folder']} MiB in its folder"
    )
    return lines + refused


def _narrow(plan: Plan, lines: list[str]) -> bool:
    if "/" in plan.readable:  # there is nothing to leave away
        return False
    try:
        namespaces.narrow([*plan.readable, *DEVICES], plan.hidden, plan.scratch, plan.limits.folder)
    except OSError:
        return False
    lines.append("a file system of its own: Python and the folder under test, read-only; its folder in memory")
    return True


def _landlock(plan: Plan, lines: list[str], *, has_view: bool) -> None:
    if not system.LINUX or "landlock" in plan.without or not landlock.version():
        lines.append(
            "no Landlock: only the file system of its own keeps files outside away"
            if has_view
            else "no Landlock: files outside can be read, and written as this user can"
        )
        return
    readable = [part for path in plan.readable for part in _parts(path, plan.hidden)]
    abi = landlock.restrict(
        [
            *readable,
            *((device, landlock.READ) for device in DEVICES),
            ("/dev/null", landlock.READ | landlock.WRITE_FILE),
            (plan.scratch, landlock.OWN),
        ]
    )
    lines.append(f"Landlock (ABI {abi}): reads Python and the folder under test, writes only its own folder")


def _parts(path: str, hidden: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Rights to read path without what is hidden in it: Landlock adds rights, and cannot take one away further down.

    The names in the folders on the way down, and below, can be listed: an import looks for its module so.
    """
    if path in hidden:
        return
    if not any(inner.startswith(path.rstrip("/") + "/") for inner in hidden):
        yield path, landlock.READ
        return
    yield path, landlock.READ_DIR
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            yield from _parts(os.path.join(path, name), hidden)


def _seccomp(plan: Plan, lines: list[str]) -> bool:
    if "seccomp" in plan.without or not seccomp.supported():
        return False
    try:
        seccomp.restrict()
    except OSError:
        return False
    lines.append("seccomp: no sockets, no new processes or threads, no signals to others, no change of mode or owner")
    return True


def _without_seccomp(*, has_namespaces: bool, is_root: bool) -> list[str]:
    lines = ["no seccomp: mode, owner and times of this user's files can be changed where they can be reached"]
    if is_root:
        lines.append("no seccomp, and root: the number of processes is not limited")
    if not has_namespaces:
        lines.append("no seccomp and no namespaces: the network can be reached, and this user's processes signalled")
    return lines
