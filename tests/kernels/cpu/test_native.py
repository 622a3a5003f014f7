import ctypes
import io
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import prenorm
import prenorm.functional as F
from prenorm import KernelError, explain, use_backend
from prenorm.kernels.cpu import build, native, rms_norm
from prenorm.locks import lock

from ...oracle.inputs import normal

KERNEL = "prenorm.kernels.cpu.rms_norm.rms_norm"


# What every library has, so that no other version of prenorm takes it for its own.
SOURCES = 'extern "C" const char *prenorm_sources() { return PRENORM_SOURCES; } '


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("PRENORM_ISA", raising=False)
    monkeypatch.setattr(native, "SHIPPED", tmp_path / "no libraries")
    forget()
    yield tmp_path / "prenorm"
    forget()


def forget():
    native._loaded.cache_clear()
    for function in (rms_norm.FORWARD, rms_norm.BACKWARD):
        function.available.cache_clear()


class Norm(torch.nn.Module):
    def forward(self, x, weight):
        return F.rms_norm(x, weight)


def run():
    """What ran, and why; the numbers are right whatever it was."""
    forget()
    x, weight = normal(8, 33), normal(33, seed=1)
    wide, narrow = [
        [t.to(dtype, copy=True).requires_grad_() for t in (x, weight)] for dtype in (x.dtype, torch.float32)
    ]
    for tensors in (narrow, wide):
        F.rms_norm(*tensors).square().sum().backward()
    for actual, expected in zip(narrow, wide, strict=True):
        torch.testing.assert_close(actual.grad, expected.grad.float(), rtol=1e-4, atol=1e-4)
    (choice,) = explain(Norm(), *narrow)
    (row,) = [row for row in explain() if row.op == "rms_norm" and row.dtype == torch.float32]
    assert (row.runs, row.why) == (choice.runs, choice.why)
    return choice.runs, choice.why


@pytest.fixture
def source(tmp_path):
    """A kernel that takes no time to build."""
    file = tmp_path / "kernel.cpp"
    file.write_text(SOURCES + 'extern "C" int answer() { return 42; }')
    return file


def answer(source, compiler="g++"):
    return native._built([source], "native", [compiler]).answer()


def compiler(folder, text):
    """A program that does as `text` says."""
    program = folder / "compiler"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


def libraries(cache):
    return sorted(cache.glob("kernels-*.so"))


@pytest.mark.long
def test_the_kernel_is_built_loaded_and_right_with_torchs_openmp_alone(cache):
    runs, why = run()
    assert runs == KERNEL
    assert why.endswith("(native, built here)")
    assert len(libraries(cache)) == 1
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if any(name in line for name in ("libgomp", "libomp", "libiomp"))}
    assert len(runtimes) == 1
    assert Path(torch.__file__).parent.parent in Path(runtimes.pop()).parents


def test_a_library_is_built_once_and_found_again(cache, source):
    assert answer(source) == 42
    (library,) = libraries(cache)
    before = library.stat()
    assert answer(source, "/nowhere/no-compiler") == 42  # none is needed any more
    assert library.stat() == before


def test_what_is_kept_belongs_to_the_user_alone(cache, source):
    answer(source)
    (library,) = libraries(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@pytest.mark.parametrize("variable", ["CXX", "PATH"])
def test_without_a_compiler_the_formula_runs_which_is_said_once(cache, monkeypatch, capfd, variable):
    monkeypatch.setenv(variable, "/nowhere/no-compiler")
    runs, why = run()
    assert runs == "formula"
    expected = "there is no C++ compiler (" + {"CXX": "/nowhere/no-compiler", "PATH": "g++"}[variable]
    assert why.startswith(expected)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"prenorm: {expected}")
    assert "PRENORM_ISA=none" in line
    assert not cache.exists()  # nothing is written for nothing


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'out of order' >&2; exit 3", "failed: out of order"),
        ("exit 3", "failed: exit code 3"),
        ("exec sleep 20", "took longer than 0.1 seconds"),
        ('for last; do :; done; echo "no library" > "$last"', "file too short"),  # it says that it did, and did not
        ("exit 0", "cannot open shared object"),
        (None, "Permission denied"),
    ],
)
def test_a_build_that_fails_raises_with_a_way_out_and_is_not_tried_again(cache, monkeypatch, tmp_path, text, reason):
    log = tmp_path / "log"
    program = compiler(tmp_path, f"echo run >> {log}\n{text}" if text else "")
    if text is None:
        program = str(tmp_path)  # a folder is no program
    if "20" in str(text):
        monkeypatch.setattr(build, "SECONDS", 0.1)
    monkeypatch.setenv("CXX", program)
    x, weight = torch.ones(2, 4), torch.ones(4)
    with pytest.raises(KernelError, match=f"{reason}.*PRENORM_ISA=none.*use_backend"):
        F.rms_norm(x, weight)
    tried = log.read_text() if log.exists() else ""
    with pytest.raises(KernelError, match=reason):
        F.rms_norm(x, weight)
    assert (log.read_text() if log.exists() else "") == tried
    with use_backend("reference"):
        F.rms_norm(x, weight)
    forget()
    monkeypatch.setenv("PRENORM_ISA", "none")
    assert run() == ("formula", "PRENORM_ISA=none asks for the formulas")


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
    assert libraries(cache) == []


def test_a_folder_that_others_may_write_is_not_trusted(cache, source):
    cache.mkdir()
    cache.chmod(0o777)
    assert answer(source) == 42
    assert libraries(cache) == []


@pytest.mark.parametrize("damage", ["empty", "nonsense", "half", "one bit"])
def test_a_damaged_file_is_built_again(cache, source, damage):
    answer(source)
    (library,) = libraries(cache)
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
    (library,) = libraries(cache)
    library.chmod(0o777)
    before = library.stat().st_ino
    assert answer(source) == 42
    assert library.stat().st_ino != before
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@pytest.mark.long
def test_eight_processes_that_start_together_build_once(cache, tmp_path, source):
    log = tmp_path / "log"
    program = compiler(tmp_path, f'echo run >> {log}\nsleep 0.5\nexec g++ "$@"')
    code = (
        "import sys; from pathlib import Path; from prenorm.kernels.cpu import native; "
        "sys.exit(native._built([Path(sys.argv[1])], 'native', [sys.argv[2]]).answer() != 42)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(prenorm.__file__).parent.parent)}
    command = [sys.executable, "-c", code, str(source), program]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    said = [line for process in processes for line in process.communicate(timeout=300)[1].splitlines()]
    assert [process.returncode for process in processes] == [0] * 8
    building, waiting = ([line for line in said if word in line] for word in (": building", ": waiting for another"))
    assert len(building) == 1
    assert len(waiting) == len(said) - 1  # those that came later found it, and said nothing
    assert log.read_text().splitlines() == ["run"] * 2  # compiled and linked
    assert {path.name for path in cache.iterdir()} == {libraries(cache)[0].name, "kernels.lock"}  # nothing half written


def test_a_process_that_waits_for_a_build_says_so(cache, source, capfd):
    cache.mkdir(mode=0o700)
    with ThreadPoolExecutor(1) as beside:
        with open(cache / "kernels.lock", "w") as held:
            lock(held, wait=True)
            built, said = beside.submit(answer, source), ""
            stop = time.monotonic() + 20
            while not said and time.monotonic() < stop:
                time.sleep(0.01)
                said = capfd.readouterr().err
        assert said == "prenorm: waiting for another process, which builds its C++ kernels ...\n"
        assert built.result() == 42


def test_a_file_of_another_user_is_not_ours(tmp_path, monkeypatch):
    file = tmp_path / "library"
    file.write_text("")
    file.chmod(0o600)
    assert native._is_ours(file)
    assert not native._is_ours(tmp_path / "none")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not native._is_ours(file)


def test_another_source_or_cpu_or_flag_has_another_name(source, monkeypatch):
    def name(isa="native", *arguments):
        return native._fingerprint([source], isa, ["g++", *arguments])

    names = {name()}
    assert names == {name()}
    names |= {name("x86-64-v3"), name("native", "-O1")}
    source.write_text("int two;")
    names.add(name())
    monkeypatch.setattr(build, "COMPILE", (*build.COMPILE, "-g"))
    names.add(name())
    monkeypatch.setattr(native, "features", lambda: {"fpu", "of another CPU"})
    names.add(name())
    assert len(names) == 6


def test_a_missing_symbol_is_a_reason_and_no_crash(source):
    source.write_text('extern "C" int nowhere_to_be_found(); extern "C" int call() { return nowhere_to_be_found(); }')
    with pytest.raises(OSError, match="nowhere_to_be_found"):
        answer(source)


def test_the_compiler_may_come_with_arguments(source):
    source.write_text(SOURCES + 'extern "C" int answer() { return ANSWER; }')
    library = native._built([source], "native", ["g++", "-DANSWER=42"])
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


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The libraries of a wheel, each of which answers with its own name."""
    monkeypatch.setattr(native, "SHIPPED", tmp_path / "libraries")
    monkeypatch.setenv("CXX", "/nowhere/no-compiler")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    (tmp_path / "libraries").mkdir()
    for isa in build.SHIPPED:
        library(tmp_path, isa, build.digest(build.sources()))
    return tmp_path


def library(folder, isa, sources):
    file = folder / "library.cpp"
    file.write_text(
        f'extern "C" const char *prenorm_sources() {{ return "{sources}"; }} extern "C" const char *name() '
        f'{{ return "{isa}"; }}'
    )
    command = ["g++", "-shared", "-fPIC", str(file), "-o", str(folder / "libraries" / f"{isa}.so")]
    subprocess.run(command, check=True)


FEATURES = {isa: build.LEVELS[isa].needs for isa in build.SHIPPED}


def which(monkeypatch):
    monkeypatch.setattr(native, "_agreed", lambda library: library)  # it has no kernels
    loaded = native._choose(os.environ.get("PRENORM_ISA", ""))
    if loaded.library is None:
        return loaded.unavailable_reason
    loaded.library.name.restype = ctypes.c_char_p
    assert loaded.which == f"{loaded.library.name().decode()}, from the wheel"
    return loaded.library.name().decode()


def test_a_wheel_serves_each_processor_with_the_most_that_it_has(wheel, monkeypatch):
    monkeypatch.setattr(native, "_open", lambda path, _: SimpleNamespace(name=lambda: path.stem.encode()))
    for isa, features in FEATURES.items():
        monkeypatch.setattr(native, "features", lambda features=features: features | {"fpu"})
        assert which(monkeypatch) == isa
        monkeypatch.setattr(native, "features", lambda features=features: set(sorted(features)[1:]))
        assert which(monkeypatch) != isa  # one instruction is missing
    monkeypatch.setattr(native, "features", lambda: {"fpu", "sse2"})
    assert which(monkeypatch) == "this processor has less than x86-64-v3; PRENORM_ISA=native builds the kernels"


def test_a_wheel_needs_no_compiler_and_writes_nothing_into_the_home_directory(wheel, monkeypatch):
    monkeypatch.setattr(native, "features", lambda: FEATURES["x86-64-v3"])
    assert which(monkeypatch) == "x86-64-v3"
    assert not (wheel / "home").exists()


def test_a_library_of_another_version_is_refused_by_name(wheel, monkeypatch):
    monkeypatch.setattr(native, "features", lambda: FEATURES["x86-64-v3"])
    library(wheel, "x86-64-v3", "0" * 64)
    with pytest.raises(KernelError, match=r"x86-64-v3\.so is not of this version of prenorm"):
        which(monkeypatch)


def test_prenorm_isa_names_the_library(wheel, monkeypatch):
    monkeypatch.setattr(native, "features", lambda: FEATURES["x86-64-v4-bf16"])
    for isa in build.SHIPPED:
        monkeypatch.setenv("PRENORM_ISA", isa)
        assert which(monkeypatch) == isa
    monkeypatch.setattr(native, "features", lambda: FEATURES["x86-64-v3"])
    monkeypatch.setenv("PRENORM_ISA", "x86-64-v4")
    with pytest.raises(KernelError, match="PRENORM_ISA=x86-64-v4 needs instructions that this processor lacks: avx512"):
        which(monkeypatch)
    monkeypatch.setenv("PRENORM_ISA", "avx")
    with pytest.raises(KernelError, match=r"must be one of x86-64-v4-bf16, .*, native or none, but it is 'avx'"):
        which(monkeypatch)


@pytest.mark.parametrize(("system", "machine"), [("win32", "x86_64"), ("darwin", "arm64"), ("linux", "ppc64le")])
def test_other_systems_get_the_formulas_and_a_reason(monkeypatch, system, machine):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert native.load().library is None
    assert native.unavailable_reason().startswith("the C++ kernels are for Linux on x86_64 and aarch64, and this is ")
    forget()
    monkeypatch.setenv("PRENORM_ISA", "native")
    with pytest.raises(KernelError, match=r"PRENORM_ISA=native cannot be had: .* for Linux on x86_64 and aarch64"):
        native.load()


def test_a_set_of_instructions_of_another_machine_is_refused(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setenv("PRENORM_ISA", "x86-64")
    with pytest.raises(KernelError, match="PRENORM_ISA=x86-64 is for x86_64, and this is aarch64; PRENORM_ISA=native"):
        native.load()


def test_a_set_of_instructions_that_is_asked_for_and_cannot_be_built_is_refused(monkeypatch, capfd):
    monkeypatch.setenv("CXX", "/nowhere/no-compiler")
    monkeypatch.setenv("PRENORM_ISA", "native")
    with pytest.raises(KernelError, match=r"PRENORM_ISA=native must be built, and there is no C\+\+ compiler .*=none"):
        native.load()
    assert capfd.readouterr().err == ""
