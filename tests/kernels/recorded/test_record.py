"""The recorded calls are right with this machine's own library; tests/isa.py runs them elsewhere."""

import struct
import subprocess
from pathlib import Path

import pytest

from prenorm.kernels.cpu import native
from prenorm.kernels.cpu.header import STRUCTS, layout

from .calls import argmaxes
from .format import encoded, numbers
from .record import write

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("driver") / "driver"
    runtime = "-Wl,--no-as-needed", "-fopenmp"  # the library brings none
    source = str(Path(__file__).with_name("driver.cpp"))
    subprocess.run(["g++", "-std=c++17", *runtime, source, "-ldl", "-o", str(program)], check=True)
    return program


def run(driver: Path, *calls: Path) -> tuple[int, str]:
    library = native.load().library
    assert library is not None
    done = subprocess.run([driver, library._name, *calls], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_call_of_every_kernel_gives_what_was_recorded(driver, tmp_path):
    calls = write(tmp_path)
    assert run(driver, *calls) == (0, f"{len(calls) - 1} calls, 0 wrong\n")


def test_what_is_wrong_is_found(driver, tmp_path):
    sizes = tmp_path / "sizes"
    sizes.write_bytes(numbers(*(layout(name).size for name in STRUCTS), 0))
    (call, *_) = argmaxes()
    right = encoded(call)
    path = tmp_path / "call"
    path.write_bytes(right)
    assert run(driver, sizes, path) == (0, "1 calls, 0 wrong\n")
    path.write_bytes(right[:-8] + struct.pack("<d", 5000.0))  # the last of the indices that are expected
    assert run(driver, sizes, path)[0] == 1
    path.write_bytes(right[:-1])
    assert "cannot be read" in run(driver, sizes, path)[1]
    path.write_bytes(right.replace(b"argmax", b"argmin"))
    assert "there is no such function" in run(driver, sizes, path)[1]
    path.write_bytes(right)
    sizes.write_bytes(numbers(8, 0))
    assert run(driver, sizes, path)[0] == 2
