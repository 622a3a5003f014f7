"""Kernels in C++: all built when the first of them is used, kept for the next program, and loaded with ctypes.

A source is a plain C++ file beside this one, with `extern "C"` functions and no headers but ours and the language's, so
that a compiler takes seconds for it. Where it cannot be built or loaded, there is no kernel, and a reason why.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

# Without -ffast-math: NaN and infinity are numbers that a caller may look for. Without contraction to fused
# multiply-adds, so that the bits of a result do not hang on which copy of a loop the compiler put it through.
COMPILE = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-fno-exceptions", "-fPIC", "-fopenmp", "-w"),
)
# Without -fopenmp: the library would bring the system's OpenMP, a second one beside torch's with threads of its own.
# As it is, torch's answers, which every process that imports torch has loaded for all to see.
LINK = ("-shared", "-Wl,--as-needed")
HERE = Path(__file__).parent
Key = TypeVar("Key")
SECONDS = 120  # more than a compiler ever needs


class Native(NamedTuple):
    """A library, or the reason why there is none."""

    library: ctypes.CDLL | None
    why_not: str = ""


class _CannotBuildError(Exception):
    pass


@functools.cache
def load() -> Native:
    """The library of the sources beside this file, built if it has not been. Never raises.

    A machine without a compiler is no fault, and nothing is said; a compiler that fails or a library that does not
    load gives one RuntimeWarning.
    """
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    try:
        return Native(_load(sorted(HERE.glob("*.cpp")), command))
    except FileNotFoundError as error:
        if error.filename == command[0]:
            return Native(None, f"there is no C++ compiler ({command[0]}; the variable CXX names another)")
        reason = str(error)
    except (OSError, RuntimeError, _CannotBuildError, subprocess.SubprocessError, ValueError) as error:
        reason = str(error)
    with suppress(OSError, ValueError):  # nobody may be listening
        warnings.warn(
            f"the C++ kernels could not be built, so slower code runs: {reason}", RuntimeWarning, stacklevel=2
        )
    return Native(None, f"it could not be built: {reason}")


def why_not() -> str:
    """Why there are no kernels on this machine; empty where there are."""
    return load().why_not


def functions(names: dict[Key, str]) -> dict[Key, Callable[[bytes], int]]:
    """The functions of these names, by what they are wanted for. Nothing where there is no library."""
    library = load().library
    return {} if library is None else {key: library[name] for key, name in names.items()}


def _load(sources: Sequence[Path], command: list[str]) -> ctypes.CDLL:
    built = f"kernels-{_fingerprint(sources)}.so"
    folder = _cache_folder()
    if folder is not None and _is_ours(folder / built) and _is_whole(folder / built):
        return ctypes.CDLL(str(folder / built))
    with tempfile.TemporaryDirectory(prefix="prenorm-") as scratch:
        library = _build(sources, command, Path(scratch))
        if folder is not None and _keep(library, folder / built):
            library = folder / built
        return ctypes.CDLL(str(library))


def _fingerprint(sources: Sequence[Path]) -> str:
    """A name that no other sources, flags or CPU have: a home directory may be shared by machines of several kinds."""
    cpu = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    files = (path.read_bytes() for path in (*sources, *sorted(HERE.glob("*.h"))))
    parts = (*files, " ".join((*COMPILE, *LINK)).encode(), " ".join(os.uname()[4:]).encode(), cpu.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _cache_folder() -> Path | None:
    """Where built libraries stay; None where there is no folder that is this user's alone."""
    try:
        home = os.environ.get("XDG_CACHE_HOME", "")  # a relative path is to be ignored, says its specification
        folder = (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "prenorm"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_ours(folder) else None
    except (OSError, RuntimeError):  # a home that cannot be written, or none at all
        return None


def _is_ours(path: Path) -> bool:
    """Whether it is there and nobody else could have written it: what is loaded is run."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(library: Path) -> bool:
    """Whether it ends with its own digest: a file cut short by a power cut would kill the process that loads it."""
    content = library.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _build(sources: Sequence[Path], command: list[str], scratch: Path) -> Path:
    objects, library = [scratch / f"{source.stem}.o" for source in sources], scratch / "kernels.so"
    if shutil.which(command[0]) is not None and sys.stderr is not None:
        with suppress(OSError, ValueError):  # nobody may be listening
            print("prenorm: building its C++ kernels, which takes some seconds, once ...", file=sys.stderr, flush=True)
    steps = [(*COMPILE, "-c", str(source), "-o", str(made)) for source, made in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(len(steps)) as together:
        list(together.map(lambda step: _run(command, step), steps))
    _run(command, (*LINK, *map(str, objects), "-o", str(library)))
    return library


def _run(command: list[str], step: Sequence[str]) -> None:
    done = subprocess.run([*command, *step], capture_output=True, text=True, errors="replace", timeout=SECONDS)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _CannotBuildError(f"{shlex.join(command)} failed: {said[0]}")


def _keep(library: Path, place: Path) -> bool:
    """Put it where the next process finds it: whole or not at all, since several processes may start at once."""
    try:
        with tempfile.TemporaryDirectory(dir=place.parent) as new:  # of the same file system, or it could not be moved
            whole, content = Path(new, library.name), library.read_bytes()
            whole.write_bytes(content + hashlib.sha256(content).digest())  # the loader does not look behind the end
            whole.chmod(0o700)
            os.replace(whole, place)
    except OSError:
        return False
    return True
