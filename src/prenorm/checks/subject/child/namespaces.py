"""Namespaces: a network without a way out, processes that see nobody else, and a file system of its own.

The file system holds what may be read, read-only, at the same paths as outside, and an empty folder in memory of
bounded size. Everything else does not exist in it, not even as a name. An ordinary user needs a user namespace for
it, which containers and some distributions refuse.
"""

import contextlib
import os
import struct
from collections.abc import Iterable

from . import system

# linux/sched.h
_MOUNTS, _GROUPS, _UTS, _IPC, _USER, _PROCESSES, _NETWORK = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
# linux/mount.h
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2
_NO_SETUID, _NO_DEVICES, _READ_ONLY = 2, 4, 1
_WITHIN, _WORKING_FOLDER = 0x8000, -100  # AT_RECURSIVE, AT_FDCWD


def enter() -> bool:
    """Take new namespaces for this process (network, ...) and for its children (processes); `narrow` does the mounts.

    False where the system refuses.
    """
    user, group = os.getuid(), os.getgid()
    rest = _GROUPS | _UTS | _IPC | _PROCESSES | _NETWORK
    try:
        system.libc("unshare", _USER | rest)
    except OSError:
        try:  # root where user namespaces are switched off
            system.libc("unshare", rest)
        except OSError:
            return False
        return True
    # The same user within: files keep their owners. A process without a mapping still has what it could read before.
    with contextlib.suppress(OSError):
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    return True


def narrow(readable: Iterable[str], hidden: Iterable[str], scratch: str, size: int) -> None:
    """Leave only readable (less hidden) of the file system, and at scratch an empty folder in memory of size bytes.

    OSError where the system refuses; what was mounted until then is nobody else's business.
    """
    system.libc("unshare", _MOUNTS)
    system.libc("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
    _mount_memory(scratch, 1 << 20)
    root = scratch
    _bind_all(sorted(set(readable)), root)
    for path in hidden:
        if os.path.isdir(root + path):
            _mount_memory(root + path, 1 << 16)
            _make_read_only(root + path)
    os.makedirs(root + scratch, exist_ok=True)
    _mount_memory(root + scratch, size)
    os.chdir(root)
    system.call("pivot_root", b".", b".")  # the old root now lies on top of the new one
    system.libc("umount2", b".", _DETACH)
    os.chdir("/")
    _make_read_only("/", recursive=False)


def drop_privileges() -> None:
    """Be an ordinary process: no capabilities, now or later."""
    if not system.LINUX:
        return
    for capability in range(64):
        with contextlib.suppress(OSError):
            system.prctl(24, capability)  # PR_CAPBSET_DROP
    with contextlib.suppress(OSError):
        system.prctl(47, 4)  # PR_CAP_AMBIENT, clear all
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    with contextlib.suppress(OSError):
        system.call("capset", header, bytes(24))


def _bind_all(paths: list[str], root: str) -> None:
    done: list[str] = []
    for path in paths:
        if not os.path.exists(path) or any(path == other or path.startswith(other + "/") for other in done):
            continue
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
        system.libc("mount", os.fsencode(path), os.fsencode(target), None, _BIND | _RECURSIVE, None)
        _make_read_only(target)
        done.append(path)


def _mount_memory(path: str, size: int) -> None:
    options = f"size={size},nr_inodes=4096,mode=0700"
    system.libc("mount", b"none", os.fsencode(path), b"tmpfs", _NO_SETUID | _NO_DEVICES, options.encode())


def _make_read_only(path: str, *, recursive: bool = True) -> None:
    attributes = struct.pack("=4Q", _READ_ONLY | _NO_SETUID, 0, 0, 0)
    flags = _WITHIN if recursive else 0
    system.call("mount_setattr", _WORKING_FOLDER, os.fsencode(path), flags, attributes, len(attributes))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
