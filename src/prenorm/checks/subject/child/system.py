"""The system calls that Python has no function for, by libc and by number. Linux; elsewhere nothing here works."""

import ctypes
import os
import platform
import sys
from typing import Any

LINUX = sys.platform == "linux"
MACHINE = platform.machine()

NUMBERS: dict[str, int | dict[str, int]] = {
    "pivot_root": {"x86_64": 155, "aarch64": 41},
    "capset": {"x86_64": 126, "aarch64": 91},
    "seccomp": {"x86_64": 317, "aarch64": 277},
    # The same on every machine.
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The system call called name. OSError as the kernel gives it, ENOSYS where this machine's number is not known."""
    number = NUMBERS[name]
    if isinstance(number, dict):
        if MACHINE not in number:
            raise OSError(38, f"the number of {name} on {MACHINE} is not known")
        number = number[MACHINE]
    return _checked(name, _libc.syscall(ctypes.c_long(number), *map(_word, arguments)))


def libc(name: str, *arguments: int | bytes | None) -> int:
    """libc's function called name, one that gives -1 and errno when it fails."""
    return _checked(name, getattr(_libc, name)(*map(_word, arguments)))


def prctl(option: int, argument: int = 0, third: int = 0) -> int:
    """prctl(2); the unused arguments must be zero."""
    return libc("prctl", option, argument, third, 0, 0)


def _word(argument: Any) -> Any:
    # A plain int would go as a C int: the upper half of its register is then anything.
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
