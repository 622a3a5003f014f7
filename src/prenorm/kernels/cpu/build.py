"""How the C++ files beside this one are built into a library: instruction sets and flags.

Nothing but the standard library is imported, so that the wheel's build hook can load this file by its path.
"""

import hashlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
# Without -ffast-math: a caller may look for NaN and infinity. Without contraction to fused
# multiply-adds, so that a result's bits do not depend on which copy of a loop computes it.
COMPILE = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fno-exceptions"),
    *("-fPIC", "-fopenmp"),
)
# Used by `make test-isa` and `make wheel`, not where users build. GCC 12 warns of undefined vectors inside its own
# AVX-512 intrinsics.
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
# Without -fopenmp, which would load the system's OpenMP beside torch's, with threads of its own.
# Without it torch's is used, which every process that imports torch has loaded globally.
LINK = ("-shared", "-Wl,--as-needed")
SECONDS = 600  # for one file, which takes 20 at most on an idle machine


class Level(NamedTuple):
    """A set of instructions: the compiler's flags, and what Linux calls the features in /proc/cpuinfo."""

    flags: tuple[str, ...]
    needs: frozenset[str] = frozenset()


_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS = {
    "x86-64-v4-bf16": Level(("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"), _V4 | {"avx512_bf16", "avx512_vnni"}),
    "x86-64-v4": Level(("-march=x86-64-v4",), _V4),
    "x86-64-v3": Level(("-march=x86-64-v3",), _V3),
    "x86-64": Level(("-march=x86-64",)),  # no vectors beyond SSE2: for tests
    "native": Level(("-march=native",)),  # all that this very processor has
}
SHIPPED = ("x86-64-v4-bf16", "x86-64-v4", "x86-64-v3")  # in a wheel, best first


class BuildError(Exception):
    """A compiler that failed, or took too long."""


def sources() -> list[Path]:
    """The files that are compiled."""
    return sorted(HERE.glob("*.cpp"))


def digest(files: Sequence[Path]) -> str:
    """A hash of these files and our headers."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in (*files, *sorted(HERE.glob("*.h"))))).hexdigest()


def build(
    files: Sequence[Path], level: Level, command: Sequence[str], scratch: Path, extra: Sequence[str] = ()
) -> Path:
    """Compile and link, as many files at once as there are cores. Raises BuildError, and OSError for no compiler.

    The `extra` flags come last, so that they win.
    """
    library, flags = scratch / "kernels.so", (*COMPILE, *level.flags, f'-DPRENORM_SOURCES="{digest(files)}"', *extra)
    objects = [scratch / f"{source.stem}.o" for source in files]
    steps = [(*flags, "-c", str(source), "-o", str(made)) for source, made in zip(files, objects, strict=True)]
    with ThreadPoolExecutor(min(len(steps), os.cpu_count() or 1)) as together:
        list(together.map(lambda step: _run(command, step), steps))
    _run(command, (*LINK, *extra, *map(str, objects), "-o", str(library)))
    return library


def _run(command: Sequence[str], step: Sequence[str]) -> None:
    try:
        done = subprocess.run([*command, *step], capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{shlex.join(command)} took longer than {SECONDS} seconds") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BuildError(f"{shlex.join(command)} failed: {next((line for line in said if 'error' in line), said[0])}")
