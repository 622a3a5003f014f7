"""python -m tests.isa: the kernels' tests with every set of instructions that this processor has, and with sanitizers.

Every set is built with warnings as errors, as users have it and then with AddressSanitizer and UBSan. It takes half an
hour on 2 cores. Those that this processor lacks are passed over, and named.
"""

import os
import subprocess
import sys
import tempfile

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


def _of_the_compiler(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
