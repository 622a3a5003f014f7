"""Landlock: from here on this process opens only what is listed. Kernel 5.13 and newer, no privilege needed.

Not covered by it: stat(), readlink(), chdir() and access() on other paths, and changes of mode, owner and times
(seccomp refuses those).
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

from . import system

# linux/landlock.h
READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_FIFO, MAKE_SYM, REFER = (1 << n for n in (4, 5, 7, 8, 10, 12, 13))
FILE_RIGHTS = READ_FILE | WRITE_FILE | TRUNCATE
ALL_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by ABI version, how many bits there are; from 5 on there are 16
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
_VERSION = 1

READ = READ_FILE | READ_DIR
OWN = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | MAKE_SYM | REFER


def version() -> int:
    """The kernel's ABI version of Landlock, 0 without it."""
    try:
        return system.call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def restrict(rights: Iterable[tuple[str, int]]) -> int:
    """Refuse everything that a (path, rights) pair does not allow, for good. Gives the ABI version.

    Paths that do not exist are left out. TCP, signals to processes outside and abstract sockets outside are refused
    where the kernel can. no_new_privs must be set.
    """
    abi = version()
    handled = (1 << ALL_RIGHTS.get(abi, 16)) - 1
    fields = [handled]
    if abi >= 4:
        fields.append(BIND_TCP | CONNECT_TCP)
    if abi >= 6:
        fields.append(SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = system.call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for path, allowed in rights:
            _allow(ruleset, path, allowed & handled)
        system.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            allowed &= FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, opened), 12)
        system.call("landlock_add_rule", ruleset, 1, rule, 0)
    finally:
        os.close(opened)
