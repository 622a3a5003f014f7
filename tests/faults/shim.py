"""Builds shim.cpp, and controls it from a process that was started with it."""

import ctypes
import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CALLS = ("OPEN", "WRITE", "SYNC", "RENAME", "UNLINK", "MKDIR", "RMDIR", "CLOSE")
FAULTS = ("NONE", "KILL_BEFORE", "KILL_AFTER", "FAIL_ONCE", "FAIL_ALWAYS")


def compiler() -> list[str] | None:
    """The C++ compiler that the kernels are built with, if there is one."""
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    return command if shutil.which(command[0]) else None


def build(folder: Path) -> Path:
    """The library, compiled into a folder."""
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.cpp")
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run([*compiler(), *flags, str(source), "-o", str(library), "-ldl"], check=True)
    return library


class Call(NamedTuple):
    """One line of a trace: the number is a descriptor, the second text a new name, the data of a write, or "w"."""

    name: str
    number: int
    first: bytes
    second: str


@contextmanager
def armed(
    number: int = -1, fault: str = "NONE", *, error: int = 0, failing: str = "", longest: int = 0, trace: int = -1
) -> Iterator[list[int]]:
    """In this context the call with this number meets the fault. Afterwards the list has the number of calls."""
    control = ctypes.CDLL(None)
    bits = sum(1 << CALLS.index(name) for name in failing.split())
    counted: list[int] = []
    control.prenorm_arm.argtypes = [ctypes.c_long, *3 * [ctypes.c_int], ctypes.c_size_t, ctypes.c_int]
    control.prenorm_arm(number, FAULTS.index(fault), error, bits, longest, trace)
    try:
        yield counted
    finally:
        counted.append(control.prenorm_disarm())


def read_trace(path: Path) -> list[Call]:
    """The calls that were written down."""
    data, place, calls = path.read_bytes(), 0, []
    while place < len(data):
        call, number, first, second = struct.unpack_from("=4i", data, place)
        place += 16
        end = place + first
        calls.append(Call(CALLS[call], number, data[place:end], os.fsdecode(data[end : end + second])))
        place = end + second
    return calls
