"""The library of the kernels in C++: the one in the wheel, or built at first use and kept; loaded with ctypes.

A source is a plain C++ file beside this one, with `extern "C"` functions and no headers but ours and the language's, so
that a compiler takes seconds for it, and a library serves every version of Python and torch.

PRENORM_ISA names the instructions to use: one of `build.LEVELS`, or "none" for the formulas.
"""

import ctypes
import errno
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ...errors import KernelError
from ...locks import lock
from ..quantized_layout import GROUP, QUAD, ROWS
from . import build
from .header import CONSTANTS, STRUCTS, layout
from .processor import features

SHIPPED = build.HERE / "libraries"  # a wheel has it
FORMULAS = 'PRENORM_ISA=none runs the formulas instead, and so does prenorm.use_backend("reference")'


class Native(NamedTuple):
    """A library and which one it is, or the reason why there is none."""

    library: ctypes.CDLL | None
    which: str = ""
    unavailable_reason: str = ""


def load() -> Native:
    """The library for this processor. Raises KernelError where it can be neither loaded nor built.

    Without a compiler, and on systems without kernels, there is no library but a reason why.
    """
    loaded = _loaded()
    if isinstance(loaded, str):  # a new exception each time: one that is raised again would keep growing its traceback
        raise KernelError(loaded)
    return loaded


@functools.cache
def _loaded() -> Native | str:
    """The library, or what is wrong with it; a failure is not tried again in this process."""
    isa = os.environ.get("PRENORM_ISA", "")
    try:
        return _choose(isa)
    except (KernelError, build.BuildError, OSError, ValueError) as error:
        return f"the C++ kernels cannot be used: {error}; {FORMULAS}."


def unavailable_reason() -> str:
    """Why there are no kernels on this machine; empty where there are."""
    return load().unavailable_reason


def _choose(isa: str) -> Native:
    if isa == "none":
        return _none("PRENORM_ISA=none asks for the formulas")
    if isa and isa not in build.LEVELS:
        raise KernelError(f"PRENORM_ISA must be one of {', '.join(build.LEVELS)} or none, but it is {isa!r}")
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        reason = f"the C++ kernels are for Linux on x86_64 and aarch64, and this is {platform.system()} on {machine}"
        if isa:
            raise KernelError(f"PRENORM_ISA={isa} cannot be had: {reason}")
        return _none(reason)
    if isa.startswith("x86-64") and machine != "x86_64":
        raise KernelError(f"PRENORM_ISA={isa} is for x86_64, and this is {machine}; PRENORM_ISA=native is for it")
    if isa and (missing := build.LEVELS[isa].needs - features()):
        raise KernelError(
            f"PRENORM_ISA={isa} needs instructions that this processor lacks: {' '.join(sorted(missing))}"
        )
    if SHIPPED.is_dir() and (not isa or isa in build.SHIPPED):
        fitting = [name for name in build.SHIPPED if build.LEVELS[name].needs <= features()]
        if not fitting:
            least = build.SHIPPED[-1]
            return _none(f"this processor has less than {least}; PRENORM_ISA=native builds the kernels")
        isa = isa or fitting[0]
        return Native(_agreed(_open(SHIPPED / f"{isa}.so", build.sources())), f"{isa}, from the wheel")
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    try:
        return Native(_agreed(_built(build.sources(), isa or "native", command)), f"{isa or 'native'}, built here")
    except FileNotFoundError as error:
        if error.filename != command[0]:
            raise
    reason = f"there is no C++ compiler ({command[0]}; the variable CXX names another)"
    if isa:
        raise KernelError(f"PRENORM_ISA={isa} must be built, and {reason}")
    _say(f"{reason}, so the formulas run, which takes longer. PRENORM_ISA=none leaves this line out.")
    return _none(reason)


def _none(reason: str) -> Native:
    return Native(None, unavailable_reason=reason)


def _open(library: Path, sources: Sequence[Path]) -> ctypes.CDLL:
    """The loaded library, if it was built from these sources, which fix how a call lies in memory."""
    opened = ctypes.CDLL(str(library))
    with suppress(AttributeError):
        opened.prenorm_sources.restype = ctypes.c_char_p
        if opened.prenorm_sources() == build.digest(sources).encode():
            return opened
    raise KernelError(f"{library} is not of this version of prenorm; install the package again")


def _agreed(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, if its structs and the layout of quantised weights are those of this package."""
    names = list(STRUCTS)
    library.prenorm_sizes.restype = ctypes.POINTER(ctypes.c_int64 * (len(names) + 1))
    theirs = [*library.prenorm_sizes().contents]
    quantized = [CONSTANTS[name] for name in ("QUANT_GROUP", "QUANT_ROWS", "QUANT_QUAD")]
    if theirs != [*(layout(name).size for name in names), 0] or quantized != [GROUP, ROWS, QUAD]:
        raise KernelError(f"calls.h is not as {library._name} was compiled: structs of {theirs} bytes, {quantized}")
    return library


def _built(sources: Sequence[Path], isa: str, command: Sequence[str]) -> ctypes.CDLL:
    folder, name = _cache_folder(), f"kernels-{_fingerprint(sources, isa, command)}.so"
    if folder is not None and _is_kept(folder / name):
        return _open(folder / name, sources)
    if shutil.which(command[0]) is None and not os.path.exists(command[0]):  # before anything is written
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    if folder is None or not _is_made(folder):
        return _build(sources, isa, command, None)
    with _lock(folder / "kernels.lock"):
        if _is_kept(folder / name):  # another process has built it meanwhile
            return _open(folder / name, sources)
        return _build(sources, isa, command, folder / name)


def _build(sources: Sequence[Path], isa: str, command: Sequence[str], place: Path | None) -> ctypes.CDLL:
    _say("building its C++ kernels, which takes some seconds, once ...")
    with tempfile.TemporaryDirectory(prefix="prenorm-") as scratch:
        library = build.build(sources, build.LEVELS[isa], command, Path(scratch), _extra_flags())
        if place is not None and _keep(library, place):
            library = place
        return _open(library, sources)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the others wait, and then find what it built."""
    with ExitStack() as stack:
        with suppress(OSError):  # a full disk, a network file system without locks: each process builds for itself
            file = stack.enter_context(open(path, "w"))
            try:
                lock(file, wait=False)
            except BlockingIOError:
                _say("waiting for another process, which builds its C++ kernels ...")
                lock(file, wait=True)
        yield


def _say(line: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # stderr may be closed
            print(f"prenorm: {line}", file=sys.stderr, flush=True)


def _fingerprint(sources: Sequence[Path], isa: str, command: Sequence[str]) -> str:
    """A name that no other sources, flags or CPU have: different machines may share a home directory."""
    flags = (*build.COMPILE, *build.LINK, *build.LEVELS[isa].flags, *command[1:], *_extra_flags())
    cpu = sorted(features()) if isa == "native" else []
    parts = (build.digest(sources), " ".join(flags), " ".join(os.uname()[4:]), " ".join(cpu))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _extra_flags() -> list[str]:
    """Further compiler flags, for debugging: sanitizers, other optimisations."""
    return shlex.split(os.environ.get("PRENORM_CXXFLAGS", ""))


def _cache_folder() -> Path | None:
    """Where built libraries are kept; None for a user without a home directory."""
    home = os.environ.get("XDG_CACHE_HOME", "")  # its specification says to ignore a relative path
    try:
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "prenorm"
    except RuntimeError:
        return None


def _is_made(folder: Path) -> bool:
    """Whether the folder is there now, and belongs to this user alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # the home directory is not writable
        return False
    return _is_ours(folder)


def _is_ours(path: Path) -> bool:
    """Whether it exists and only this user could have written it: loading a library runs its code."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_kept(library: Path) -> bool:
    """Whether it is ours and ends with its own digest: loading a file that a power cut left incomplete would crash."""
    if not _is_ours(library.parent) or not _is_ours(library):
        return False
    content = library.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _keep(library: Path, place: Path) -> bool:
    """Move it to where the next process looks, atomically, since several processes may start at once."""
    try:
        with tempfile.TemporaryDirectory(dir=place.parent) as new:  # on the same file system, for os.replace
            whole, content = Path(new, library.name), library.read_bytes()
            whole.write_bytes(content + hashlib.sha256(content).digest())  # the loader ignores what follows the library
            whole.chmod(0o700)
            os.replace(whole, place)
    except OSError:
        return False
    return True
