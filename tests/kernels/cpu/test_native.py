import ctypes
import io
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import prenorm
import prenorm.functional as F
from prenorm import explain
from prenorm.kernels.cpu import native, rms_norm

from ...oracle.inputs import normal

KERNEL = "prenorm.kernels.cpu.rms_norm.rms_norm"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    forget()
    yield tmp_path / "prenorm"
    forget()


def forget():
    native.load.cache_clear()
    rms_norm._functions.cache_clear()


class Norm(torch.nn.Module):
    def forward(self, x, weight):
        return F.rms_norm(x, weight)


def run():
    """What ran, why, and what was said on the way; the numbers are right whatever it was."""
    forget()
    x, weight = normal(8, 33), normal(33, seed=1)
    wide, narrow = [
        [t.to(dtype, copy=True).requires_grad_() for t in (x, weight)] for dtype in (x.dtype, torch.float32)
    ]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for tensors in (narrow, wide):
            F.rms_norm(*tensors).square().sum().backward()
        for actual, expected in zip(narrow, wide, strict=True):
            torch.testing.assert_close(actual.grad, expected.grad.float(), rtol=1e-4, atol=1e-4)
        (choice,) = explain(Norm(), *narrow)
        (row,) = [row for row in explain() if row.op == "rms_norm" and row.dtype == torch.float32]
    assert (row.runs, row.why) == (choice.runs, choice.why)
    return choice.runs, choice.why, [str(warning.message) for warning in said]


@pytest.fixture
def source(tmp_path):
    """A kernel that takes no time to build."""
    file = tmp_path / "kernel.cpp"
    file.write_text('extern "C" int answer() { return 42; }')
    return file


def answer(source, compiler="g++"):
    return native._load([source], [compiler]).answer()


def compiler(folder, text):
    """A program that does as `text` says."""
    program = folder / "compiler"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


def test_the_kernel_is_built_loaded_and_right(cache):
    assert run()[::2] == (KERNEL, [])
    assert [library.name.split("-")[0] for library in cache.iterdir()] == ["kernels"]


def test_a_library_is_built_once_and_found_again(cache, source):
    assert answer(source) == 42
    (library,) = cache.iterdir()
    before = library.stat()
    assert answer(source, "/nowhere/no-compiler") == 42  # none is needed any more
    assert library.stat() == before


def test_what_is_kept_belongs_to_the_user_alone(cache, source):
    answer(source)
    (library,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@pytest.mark.parametrize("variable", ["CXX", "PATH"])
def test_without_a_compiler_the_formula_runs_and_nothing_is_said(cache, monkeypatch, variable):
    monkeypatch.setenv(variable, "/nowhere/no-compiler")
    runs, why, said = run()
    assert (runs, said) == ("formula", [])
    assert why.startswith("there is no C++ compiler (" + {"CXX": "/nowhere/no-compiler", "PATH": "g++"}[variable])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'out of order' >&2; exit 3", "failed: out of order"),
        ("exit 3", "failed: exit code 3"),
        ('for last; do :; done; echo "no library" > "$last"', "file too short"),  # it says that it did, and did not
        ("exit 0", "cannot open shared object"),
        (None, "Permission denied"),
    ],
)
def test_a_compiler_that_fails_gives_one_warning_and_the_formula(tmp_path, monkeypatch, text, reason):
    program = compiler(tmp_path, text or "")
    if text is None:
        program = str(tmp_path)  # a folder is no program
    monkeypatch.setenv("CXX", program)
    runs, why, said = run()
    assert runs == "formula"
    assert reason in why
    (warning,) = said
    assert warning.startswith("the C++ kernels could not be built, so slower code runs: ")
    assert reason in warning


@pytest.mark.parametrize("place", ["a file", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, source, place):
    (tmp_path / "a file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))  # an absolute place stays what it is
    assert answer(source) == 42


def test_a_disk_that_is_full_is_done_without(cache, monkeypatch, source):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert answer(source) == 42
    assert list(cache.iterdir()) == []


def test_a_folder_that_others_may_write_is_not_trusted(cache, source):
    cache.mkdir()
    cache.chmod(0o777)
    assert answer(source) == 42
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "nonsense", "half", "one bit"])
def test_a_damaged_file_is_built_again(cache, source, damage):
    answer(source)
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    half = len(whole) // 2
    library.unlink()  # the one that is loaded stays what it is
    library.write_bytes(
        {
            "empty": b"",
            "nonsense": b"not a library",
            "half": whole[:half],
            "one bit": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :],
        }[damage]
    )
    library.chmod(0o700)
    assert answer(source) == 42
    assert len(library.read_bytes()) == len(whole)


def test_a_file_that_others_may_write_is_replaced_and_not_loaded(cache, source):
    answer(source)
    (library,) = cache.iterdir()
    library.chmod(0o777)
    before = library.stat().st_ino
    assert answer(source) == 42
    assert library.stat().st_ino != before
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


def test_processes_that_start_together_do_not_disturb_each_other(cache, source):
    program = (
        "import sys; from pathlib import Path; from prenorm.kernels.cpu import native; "
        "sys.exit(native._load([Path(sys.argv[1])], ['g++']).answer() != 42)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(prenorm.__file__).parent.parent)}
    command = [sys.executable, "-c", program, str(source)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait(timeout=300) for process in processes] == [0] * 4
    assert len(list(cache.iterdir())) == 1  # and nothing half written beside it


def test_a_file_of_another_user_is_not_ours(tmp_path, monkeypatch):
    file = tmp_path / "library"
    file.write_text("")
    file.chmod(0o600)
    assert native._is_ours(file)
    assert not native._is_ours(tmp_path / "none")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not native._is_ours(file)


def test_another_source_or_cpu_or_flag_has_another_name(source, monkeypatch):
    names = {native._fingerprint([source])}
    assert names == {native._fingerprint([source])}
    source.write_text("int two;")
    names.add(native._fingerprint([source]))
    monkeypatch.setattr(native, "COMPILE", (*native.COMPILE, "-g"))
    names.add(native._fingerprint([source]))
    monkeypatch.setattr(Path, "read_text", lambda path: "flags : fpu of another CPU")
    names.add(native._fingerprint([source]))
    assert len(names) == 4


def test_there_is_one_openmp_in_the_process_and_it_is_torchs():
    assert native.load().library is not None
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if any(name in line for name in ("libgomp", "libomp", "libiomp"))}
    assert len(runtimes) == 1
    assert Path(torch.__file__).parent.parent in Path(runtimes.pop()).parents


def test_a_missing_symbol_is_a_reason_and_no_crash(source):
    source.write_text('extern "C" int nowhere_to_be_found(); extern "C" int call() { return nowhere_to_be_found(); }')
    with pytest.raises(OSError, match="nowhere_to_be_found"):
        native._load([source], ["g++"])


def test_the_compiler_may_come_with_arguments(source):
    source.write_text('extern "C" int answer() { return ANSWER; }')
    library = native._load([source], ["g++", "-DANSWER=42"])
    assert isinstance(library, ctypes.CDLL)
    assert library.answer() == 42


def test_a_build_is_announced_and_a_library_that_is_found_is_not(cache, source, capfd):
    answer(source)
    out, said = capfd.readouterr()
    assert out == ""  # which may be for another program to read
    assert said.splitlines() == ["prenorm: building its C++ kernels, which takes some seconds, once ..."]
    answer(source)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("listener", ["none", "closed", "broken"])
def test_it_is_built_where_nobody_listens(cache, source, monkeypatch, listener):
    def broken(*_):
        raise BrokenPipeError

    closed = io.StringIO()
    closed.close()
    streams = {"none": None, "closed": closed, "broken": SimpleNamespace(write=broken, flush=broken)}
    monkeypatch.setattr(sys, "stderr", streams[listener])
    assert answer(source) == 42
