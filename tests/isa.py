"""python -m tests.isa [PART ...]: the kernels' tests where `make test` does not run them. All parts without a name.

x86-64, x86-64-v3, ...: with this set of instructions, built with warnings as errors.
x86-64+sanitizers, ...: the same with AddressSanitizer and UBSan.
threads: recorded calls (kernels/recorded) with three threads under ThreadSanitizer.
aarch64: the same calls on an emulated processor, where Debian's g++-aarch64-linux-gnu and qemu-user are installed.

What this machine lacks is passed over, and named.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from prenorm.kernels.cpu import build
from prenorm.kernels.cpu.processor import features

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g1")
THREAD_SANITIZER = ("-fsanitize=thread", "-O1", "-g1")
RECORDED = Path(__file__).parent / "kernels" / "recorded"
TESTS = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels"]
BUILDS = ["--deselect", "tests/kernels/cpu/test_native.py"]  # a compiler need not be looked at for mistakes
RECORD = [sys.executable, "-m", "tests.kernels.recorded.record"]
LOAD = [sys.executable, "-c", "import torch; from prenorm.kernels.cpu import native; native._loaded()"]


def main(chosen: Sequence[str]) -> int:
    """0 where all tests of these parts pass."""
    if unknown := set(chosen) - set(PARTS):
        print(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
        return 2
    failed = []
    for name in chosen or PARTS:
        with tempfile.TemporaryDirectory(prefix="prenorm-isa-") as scratch:
            print(name, flush=True)
            if not PARTS[name](Path(scratch)):
                failed.append(name)
    print("\n".join(f"failed: {one}" for one in failed) or "all passed")
    return bool(failed)


def passes(isa: str, flags: Sequence[str], scratch: Path) -> bool:
    """Whether the kernels' tests pass with a library of their own."""
    if missing := build.LEVELS[isa].needs - features():
        print(f"passed over: this processor lacks {' '.join(sorted(missing))}", flush=True)
        return True
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(scratch),
        "PRENORM_ISA": isa,
        "PRENORM_CXXFLAGS": " ".join((*build.WARNINGS, *flags)),
        "OMP_NUM_THREADS": "2",
    }
    if not flags:
        return subprocess.run([*TESTS, *BUILDS], env=environment).returncode == 0
    subprocess.run(LOAD, env=environment, stderr=subprocess.DEVNULL)  # built without them: they would slow the compiler
    runtimes = " ".join(_of_the_compiler(f"lib{name}.so") for name in ("asan", "ubsan"))
    environment |= {"LD_PRELOAD": runtimes, "ASAN_OPTIONS": "detect_leaks=0"}  # Python frees little at its end
    return subprocess.run([*TESTS, *BUILDS, "-s"], env=environment).returncode == 0


def has_no_races(scratch: Path) -> bool:
    """Whether ThreadSanitizer finds nothing in the recorded calls; and that it finds a race that is planted."""
    driver, calls = scratch / "driver", _recorded(scratch / "calls")
    sources = [RECORDED / "driver.cpp", RECORDED / "openmp_threads.cpp"]  # which says why libgomp is no use here
    _compile(["g++"], [*THREAD_SANITIZER, "-rdynamic"], sources, driver)
    library = _library(["g++"], "native", _folder(scratch / "kernels"), THREAD_SANITIZER)
    planted = _folder(scratch / "planted") / "quantized_linear.cpp"
    source = (build.HERE / planted.name).read_text()
    planted.write_text(source.replace("#pragma omp barrier\n", ""))
    assert planted.read_text() != source
    racing = _library(["g++"], "native", planted.parent, (*THREAD_SANITIZER, f"-I{build.HERE}"), planted)
    if _run([driver, library, *calls]) != 0:
        return False
    found = subprocess.run([driver, racing, *calls], capture_output=True, text=True).stderr
    if "data race" not in found:
        print("a kernel without a barrier that it needs passes: races are not found")
    return "data race" in found


def passes_on_aarch64(scratch: Path) -> bool:
    """Whether the recorded calls are right on an emulated aarch64."""
    if not shutil.which("aarch64-linux-gnu-g++") or not shutil.which("qemu-aarch64"):
        print("passed over: there is no g++-aarch64-linux-gnu or no qemu-user here", flush=True)
        return True
    compiler, driver = ["aarch64-linux-gnu-g++"], scratch / "driver"
    _compile(compiler, ["-Wl,--no-as-needed", "-fopenmp"], [RECORDED / "driver.cpp"], driver)
    library = _library(compiler, "", _folder(scratch / "kernels"), build.WARNINGS)
    calls = _recorded(scratch / "calls")
    return _run(["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", driver, library, *calls]) == 0


def _recorded(folder: Path) -> list[str]:
    """The files of record.py, which needs no kernels."""
    command, environment = [*RECORD, str(_folder(folder))], {**os.environ, "PRENORM_ISA": "none"}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def _library(command: Sequence[str], isa: str, folder: Path, extra: Sequence[str], instead: Path | None = None) -> Path:
    """The kernels, built into a folder, with another file of the same name in the place of one source."""
    sources = [instead if instead and instead.name == source.name else source for source in build.sources()]
    return build.build(sources, build.LEVELS.get(isa, build.Level(())), command, folder, extra)


def _compile(command: Sequence[str], flags: Sequence[str], sources: Sequence[Path], program: Path) -> None:
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *flags]
    subprocess.run([*command, *flags, *map(str, sources), "-ldl", "-o", str(program)], check=True)


def _run(command: Sequence[str | Path]) -> int:
    return subprocess.run(list(map(str, command))).returncode


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _of_the_compiler(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


SETS = (*build.SHIPPED, "x86-64")
PARTS: dict[str, Callable[[Path], bool]] = {
    **{isa: partial(passes, isa, ()) for isa in SETS},
    **{f"{isa}+sanitizers": partial(passes, isa, SANITIZERS) for isa in SETS},
    "threads": has_no_races,
    "aarch64": passes_on_aarch64,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
