"""The filter, run by a small interpreter of its own: for machines that these tests do not run on, too."""

import errno
import os

import pytest

from prenorm.checks.subject.child import seccomp

PID = 4242
ALLOW, KILL = "allow", "kill"
NUMBERS = {
    "x86_64": {
        "read": 0, "openat": 257, "mmap": 9, "kill": 62, "prctl": 157, "fcntl": 72, "ioctl": 16, "prlimit64": 302,
        "socket": 41, "clone": 56, "execve": 59, "ptrace": 101, "fchmodat": 268, "unshare": 272, "memfd_create": 319,
    },
    "aarch64": {
        "read": 63, "openat": 56, "mmap": 222, "kill": 129, "prctl": 167, "fcntl": 25, "ioctl": 29, "prlimit64": 261,
        "socket": 198, "clone": 220, "execve": 221, "ptrace": 117, "fchmodat": 53, "unshare": 97, "memfd_create": 279,
    },
}  # fmt: skip


def outcome(machine: str, number: int, arguments: tuple[int, ...] = (), arch: int | None = None) -> str | int:
    """What the kernel does with a call: allow, kill, or the errno that it gives."""
    data = [number, seccomp.AUDIT_ARCH[machine] if arch is None else arch, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        data += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    program, place, held = seccomp._program(machine, PID), 0, 0
    while True:
        code, if_true, if_false, constant = program[place]
        place += 1
        match code:
            case 0x20:
                held = data[constant // 4]
            case 0x54:
                held &= constant
            case 0x15:
                place += if_true if held == constant else if_false
            case 0x35:
                place += if_true if held >= constant else if_false
            case 0x06:
                match constant & 0xFFFF0000:
                    case 0x7FFF0000:
                        return ALLOW
                    case 0x80000000:
                        return KILL
                return constant & 0xFFFF


@pytest.mark.parametrize("machine", NUMBERS)
def test_numeric_code_may_go_on(machine: str) -> None:
    for name in ("read", "mmap"):
        assert outcome(machine, NUMBERS[machine][name]) == ALLOW


@pytest.mark.parametrize("machine", NUMBERS)
@pytest.mark.parametrize("name", ["socket", "clone", "execve", "ptrace", "fchmodat", "unshare", "memfd_create"])
def test_the_rest_is_refused(machine: str, name: str) -> None:
    assert outcome(machine, NUMBERS[machine][name]) == errno.EPERM


@pytest.mark.parametrize("machine", NUMBERS)
def test_the_newest_calls_do_not_exist(machine: str) -> None:
    for number in (424, 425, 434, 435, 437, 442, 446, 500):
        assert outcome(machine, number) == errno.ENOSYS
    for number in (436, 439):  # close_range, faccessat2
        assert outcome(machine, number) == ALLOW


@pytest.mark.parametrize("machine", NUMBERS)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("kill", (PID, 6), ALLOW),
        ("kill", (1, 9), errno.EPERM),
        ("kill", (0, 9), errno.EPERM),
        ("kill", (-1, 9), errno.EPERM),
        ("kill", (-PID, 9), errno.EPERM),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (1, 7), errno.EPERM),
        ("prctl", (15,), ALLOW),
        ("prctl", (4, 1), errno.EPERM),
        ("fcntl", (3, 4, os.O_NONBLOCK), ALLOW),
        ("fcntl", (3, 8, 1), errno.EPERM),
        ("fcntl", (3, 10, 9), errno.EPERM),
        ("ioctl", (1, 0x5401), ALLOW),
        ("ioctl", (1, 0x5412), errno.EPERM),
        ("ioctl", (1, 0x8901), errno.EPERM),
        ("openat", (3, 0, os.O_RDONLY), ALLOW),
        ("openat", (3, 0, os.O_RDWR | os.O_TRUNC | os.O_CREAT), ALLOW),
        ("openat", (3, 0, os.O_RDONLY | os.O_TRUNC), errno.EPERM),
    ],
)
def test_some_are_allowed_for_some_arguments(
    machine: str, name: str, arguments: tuple[int, ...], expected: str | int
) -> None:
    assert outcome(machine, NUMBERS[machine][name], arguments) == expected


@pytest.mark.parametrize("machine", NUMBERS)
def test_calls_by_another_convention_end_the_process(machine: str) -> None:
    assert outcome(machine, 0, arch=0x40000003) == KILL  # 32-bit x86
    if machine == "x86_64":
        assert outcome(machine, 0x40000000 + 57) == KILL  # x32


@pytest.mark.parametrize("machine", NUMBERS)
def test_no_jump_leaves_the_program(machine: str) -> None:
    program = seccomp._program(machine, PID)
    assert len(program) < 4096
    for place, (code, if_true, if_false, _) in enumerate(program):
        if code in (0x15, 0x35):
            assert max(if_true, if_false) < 256
            assert place + 1 + max(if_true, if_false) < len(program)
