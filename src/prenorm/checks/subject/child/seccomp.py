"""Seccomp: which system calls this process may still make. A list of what numeric code needs; the rest is refused.

Refused are so, among others: sockets of every kind, new processes and threads, exec, signals to anyone else, ptrace and
reading other processes, changes of mode, owner and times, mounts and namespaces, bpf, io_uring, keys, memory that no
limit counts (memfd, System V and POSIX queues). A refused call fails with EPERM and the learner's code goes on. The
newest ones, which libc tries first and can do without, fail with ENOSYS.
"""

import ctypes
import errno
import os
import struct

from . import system

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 1, "aarch64": 2}

# name, number on x86_64, number on aarch64 ("-": it has none). asm/unistd_64.h and asm-generic/unistd.h.
ALLOWED = """
    read 0 63, write 1 64, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, lseek 8 62,
    mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, madvise 28 233, msync 26 227, mincore 27 232,
    brk 12 214, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, preadv 295 69, pwritev 296 70,
    preadv2 327 286, pwritev2 328 287, access 21 -, faccessat 269 48, faccessat2 439 439, pipe 22 -, pipe2 293 59,
    select 23 -, pselect6 270 72, poll 7 -, ppoll 271 73, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
    epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, dup 32 23, dup2 33 -, dup3 292 24, flock 73 32, fsync 74 82,
    fdatasync 75 83, fadvise64 221 223, ftruncate 77 46, fallocate 285 47, copy_file_range 326 285, sendfile 40 71,
    splice 275 76, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -,
    renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, creat 85 -, link 86 -, linkat 265 37,
    unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36, readlink 89 -, readlinkat 267 78, umask 95 166,
    statfs 137 43, fstatfs 138 44, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
    rt_sigpending 127 136, rt_sigsuspend 130 133, rt_sigtimedwait 128 137, sigaltstack 131 132, pause 34 -,
    nanosleep 35 101, clock_nanosleep 230 115, getitimer 36 102, setitimer 38 103, alarm 37 -, clock_gettime 228 113,
    clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getpid 39 172, gettid 186 178,
    getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148,
    getresgid 120 150, getgroups 115 158, getpgrp 111 -, getpgid 121 155, getsid 124 156, getpriority 140 141,
    getrlimit 97 163, getrusage 98 165, sysinfo 99 179, uname 63 160, capget 125 90, sched_yield 24 124,
    sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125,
    sched_get_priority_min 147 126, getcpu 309 168, futex 202 98, set_tid_address 218 96, set_robust_list 273 99,
    get_robust_list 274 100, rseq 334 293, membarrier 324 283, arch_prctl 158 -, restart_syscall 219 128, exit 60 93,
    exit_group 231 94, getrandom 318 278, wait4 61 260, waitid 247 95, close_range 436 436
"""
# Allowed for some arguments only; `_conditions` says which.
CONDITIONAL = """
    kill 62 129, tgkill 234 131, prlimit64 302 261, prctl 157 167, fcntl 72 25, ioctl 16 29, open 2 -, openat 257 56
"""
NEWEST = 424  # the numbers from here on are the same on every machine, and unknown to a libc of before 2019

PRCTL = (3, 15, 16, 51, 0x53564D41)  # get dumpable, set and get the name, get the vector length, name a mapping
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)  # F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ: none makes signals
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, its size, FIONREAD, FIONBIO, close on exec

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def supported() -> bool:
    """Whether this machine's numbers are known."""
    return system.LINUX and system.MACHINE in AUDIT_ARCH


def restrict() -> None:
    """Install the filter, for good. no_new_privs must be set."""
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _program(system.MACHINE, os.getpid()))
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    system.call("seccomp", 1, 0, header)


def _program(machine: str, own_pid: int) -> list[Instruction]:
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # so have those of the x32 convention
    for number in _numbers(ALLOWED, machine).values():
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    conditional = _numbers(CONDITIONAL, machine)
    for name, checks in _conditions(own_pid).items():
        if name in conditional:
            program += [(_EQUAL, 0, len(checks), conditional[name]), *checks]
    return [*program, (_AT_LEAST, 0, 1, NEWEST), (_RETURN, 0, 0, _FAIL | errno.ENOSYS), _refused()]


def _conditions(own_pid: int) -> dict[str, list[Instruction]]:
    return {
        "kill": _argument_is_one_of(0, (own_pid,)),
        "tgkill": _argument_is_one_of(0, (own_pid,)),
        "prlimit64": _argument_is_one_of(0, (0, own_pid)),
        "prctl": _argument_is_one_of(0, PRCTL),
        "fcntl": _argument_is_one_of(1, FCNTL),
        "ioctl": _argument_is_one_of(1, IOCTL),
        "open": _does_not_truncate_what_it_reads(1),
        "openat": _does_not_truncate_what_it_reads(2),
    }


def _argument_is_one_of(place: int, values: tuple[int, ...]) -> list[Instruction]:
    # The kernel reads these arguments as 32-bit numbers, so that their lower half is all there is to look at.
    checks: list[Instruction] = [(_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * place)]
    for value in values:
        checks += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*checks, _refused()]


def _does_not_truncate_what_it_reads(place: int) -> list[Instruction]:
    # Landlock before ABI 3 does not see O_RDONLY | O_TRUNC as a change.
    return [
        (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * place),
        (_AND, 0, 0, os.O_TRUNC | os.O_ACCMODE),
        (_EQUAL, 0, 1, os.O_TRUNC | os.O_RDONLY),
        _refused(),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _refused() -> Instruction:
    return (_RETURN, 0, 0, _FAIL | errno.EPERM)


def _numbers(table: str, machine: str) -> dict[str, int]:
    rows = [entry.split() for entry in table.split(",")]
    return {row[0]: int(row[_COLUMN[machine]]) for row in rows if row[_COLUMN[machine]] != "-"}
