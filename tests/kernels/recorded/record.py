"""python -m tests.kernels.recorded.record FOLDER: calls of every C++ kernel and their right results, as files.

The formulas give the results in float64, and how far a kernel may be from them: the contract of
tests/oracle/tolerance.py. No kernel runs here. driver.cpp reads the files, calls the kernels and compares, without
Python: on an emulated processor, and under ThreadSanitizer (tests/isa.py).
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import prenorm.kernels.cpu
from prenorm.kernels.cpu.calls import Function
from prenorm.kernels.cpu.header import STRUCTS, layout

from .calls import all_calls
from .format import encoded, numbers


def write(folder: Path) -> list[Path]:
    """Write the sizes of all structs, then each call, to a file of its own. Asserts that no function is left out."""
    paths, called = [folder / "sizes"], set()
    paths[0].write_bytes(numbers(*(layout(name).size for name in STRUCTS), 0))
    for call in all_calls():
        called.add(call.symbol)
        paths.append(folder / f"{len(paths):03}-{call.symbol}")
        paths[-1].write_bytes(encoded(call))
    assert called == functions(), called ^ functions()
    return paths


def functions() -> set[str]:
    """The names of all C++ functions that Python calls."""
    modules = [one.name for one in pkgutil.iter_modules(prenorm.kernels.cpu.__path__, "prenorm.kernels.cpu.")]
    members = [one for name in modules for one in vars(importlib.import_module(name)).values()]
    return {name for one in members if isinstance(one, Function) for name in one.functions.names.values()}


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])), sep="\n")
