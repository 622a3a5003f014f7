"""python -m tests.isa: the kernels' tests with every set of instructions that this processor has, and with sanitizers.

Every set is built with warnings as errors, as users have it and then with AddressSanitizer and UBSan. It takes half an
hour on 2 cores. Those that this processor lacks are passed over, and named. For aarch64 a program without Python
(kernels/driver.cpp) is run by qemu, where Debian's g++-aarch64-linux-gnu and qemu-user are installed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from prenorm.kernels.cpu import build
from prenorm.kernels.cpu.processor import features

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g1")
TESTS = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels"]
BUILDS = ["--deselect", "tests/kernels/cpu/test_native.py"]  # a compiler need not be looked at for mistakes
LOAD = [sys.executable, "-c", "import torch; from prenorm.kernels.cpu import native; native._loaded()"]


def main() -> int:
    """0 where all tests pass with all of them."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="prenorm-isa-") as cache:
        for isa in (*build.SHIPPED, "x86-64"):
            if missing := build.LEVELS[isa].needs - features():
                print(f"{isa}: not on this processor, which lacks {' '.join(sorted(missing))}", flush=True)
                continue
            for flags in ((), SANITIZERS):
                print(f"{isa} {' '.join(flags)}", flush=True)
                if not passes(isa, flags, cache):
                    failed.append(f"{isa} {' '.join(flags)}")
        if not shutil.which("aarch64-linux-gnu-g++") or not shutil.which("qemu-aarch64"):
            print("aarch64: there is no g++-aarch64-linux-gnu or no qemu-user here", flush=True)
        elif not driver_passes(Path(cache, "driver")):
            failed.append("aarch64")
    print("\n".join(f"failed: {one}" for one in failed) or "all passed")
    return bool(failed)


def passes(isa: str, flags: tuple[str, ...], cache: str) -> bool:
    """Whether the tests pass with a library that is built in a folder of its own."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": cache,
        "PRENORM_ISA": isa,
        "PRENORM_CXXFLAGS": " ".join((*build.WARNINGS, *flags)),
        "OMP_NUM_THREADS": "2",
    }
    if not flags:
        return subprocess.run(TESTS, env=environment).returncode == 0
    subprocess.run(LOAD, env=environment, stderr=subprocess.DEVNULL)  # built without them: they would slow the compiler
    runtimes = " ".join(_of_the_compiler(f"lib{name}.so") for name in ("asan", "ubsan"))
    environment |= {"LD_PRELOAD": runtimes, "ASAN_OPTIONS": "detect_leaks=0"}  # Python frees little at its end
    return subprocess.run([*TESTS, *BUILDS, "-s"], env=environment).returncode == 0


def driver_passes(program: Path) -> bool:
    """Whether the kernels in the driver are right on an emulated aarch64."""
    print("aarch64", flush=True)
    sources = [str(path) for path in build.sources() if not path.name.startswith(("decode_step", "library"))]
    flags = [*build.COMPILE, *build.WARNINGS, f"-I{build.HERE}", str(Path(__file__).parent / "kernels" / "driver.cpp")]
    subprocess.run(["aarch64-linux-gnu-g++", *flags, *sources, "-o", str(program)], check=True)
    return subprocess.run(["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(program)]).returncode == 0


def _of_the_compiler(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
