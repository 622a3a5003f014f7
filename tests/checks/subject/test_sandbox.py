"""Each promise of the sandbox, by code that would break it; and each layer alone, so that none is there in vain."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import prenorm
from prenorm.checks.subject import fork_server
from prenorm.checks.subject.protocol import EndedError
from prenorm.checks.subject.sandbox import Limits, Sandbox, SandboxError

from ..hostile.canaries import descendants, parent_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")

LAYERS = ("namespaces", "mounts", "landlock", "seccomp")
WORDS = {
    "namespaces": "namespaces: no network",
    "mounts": "a file system of its own",
    "landlock": "Landlock (ABI",
    "seccomp": "seccomp: no sockets",
}


@dataclass
class Ran:
    """What became of a piece of code: what it printed line by line, how its sandbox ended, and how long it took."""

    lines: list[str]
    ended: EndedError | None
    seconds: float
    confinement: tuple[str, ...]


@dataclass
class Runner:
    folder: Path
    number: int = field(default=0)

    def __call__(self, code: str, *, seconds: float = 20, **options: Any) -> Ran:
        """Import code as a file of the folder under test, in a sandbox."""
        self.number += 1
        file = self.folder / f"code{self.number}.py"
        file.write_text(textwrap.dedent(code))
        ended = None
        start = time.monotonic()
        with Sandbox(self.folder, seconds=seconds, **options) as sandbox:
            try:
                reply = sandbox.ask(load(file))
                assert "error" not in reply, reply["error"]
                sandbox.ask({"op": "forget"})
            except EndedError as error:
                ended = error
        return Ran(sandbox.printed.splitlines(), ended, time.monotonic() - start, sandbox.confinement)


def load(file: Path, name: str = "nothing") -> dict[str, Any]:
    return {"op": "load", "root": str(file.parent), "module": file.stem, "file": str(file), "name": name}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Runner]:
    folder = tmp_path / "under_test"
    folder.mkdir()
    yield Runner(folder)
    left = set()
    for _ in range(200):
        if not (left := _below_the_server()):
            break
        time.sleep(0.01)
    assert not left, "processes were left behind"


@pytest.fixture(scope="module")
def has(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Skip where this kernel lacks a layer; the sandbox says so itself."""
    with Sandbox(tmp_path_factory.mktemp("empty"), seconds=60) as sandbox:
        lines = sandbox.confinement

    def needs(*layers: str) -> None:
        for layer in layers:
            if not any(line.startswith(WORDS[layer]) for line in lines):
                pytest.skip(f"this system has no {layer}")

    return needs


def only(*layers: str) -> dict[str, Any]:
    return {"without": set(LAYERS) - set(layers)}


# What it is for.


def test_what_a_judgement_makes_torch_import_is_there_already(run: Runner) -> None:
    code = """
        import sys, torch
        before = set(sys.modules)
        torch.nn.Linear(2, 2, device="meta")(torch.randn(2, 2, device="meta"))
        torch.use_deterministic_algorithms(True)
        torch.ones(2, requires_grad=True).exp().backward(torch.ones(2))
        print(len({one for one in before if one.startswith(("torch._dynamo", "sympy"))}), set(sys.modules) - before)
    """
    (line,) = run(code).lines
    number, _, new = line.partition(" ")
    assert int(number) > 100
    assert new == "set()"


def test_it_gives_the_numbers_of_a_right_block(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from prenorm import TransformerBlock")
    torch.manual_seed(3)
    block = prenorm.TransformerBlock(16, 2, 32).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    parameters = {name: parameter.detach() for name, parameter in block.named_parameters()}
    with Sandbox(tmp_path, seconds=60) as sandbox:
        assert sandbox.ask(load(file, "TransformerBlock"))["is_class"]
        built = sandbox.ask({"op": "build", "positional": [16, 2, 32], "to": "float64"})
        run = {"op": "run", "block": built["block"], "parameters": parameters, "inputs": [x], "cotangent": cotangent}
        reply = sandbox.ask(run)
    y = block(x)
    y.backward(cotangent)
    torch.testing.assert_close(reply["y"], y.detach())
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(reply["gradients"][name], parameter.grad)


@pytest.mark.parametrize("without", [(), ("mounts",)])
def test_ordinary_numeric_code_works_in_it(run: Runner, without: tuple[str, ...]) -> None:
    ran = run(
        """
        import asyncio, decimal, hashlib, multiprocessing, ssl, tempfile
        import numpy, torch
        from torch import nn
        from torch.utils.checkpoint import checkpoint
        torch.set_num_threads(4)
        (torch.randn(300, 300) @ torch.randn(300, 300)).exp().sum()
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            nn.Linear(16, 16).to(dtype)(torch.randn(2, 16, dtype=dtype)).float().sum().backward()
        nn.functional.scaled_dot_product_attention(*(torch.randn(1, 2, 8, 16, dtype=torch.bfloat16) for _ in range(3)))
        torch.view_as_complex(torch.randn(3, 2)) * torch.polar(torch.ones(3), torch.ones(3))
        nn.Linear(3, 3, device="meta"), nn.Linear(3, 3).double()
        numpy.linalg.svd(numpy.random.randn(9, 9))
        x = torch.ones(3, requires_grad=True)
        checkpoint(lambda v: v.sin(), x, use_reentrant=True).sum().backward()
        compiled = torch.compile(nn.Linear(3, 3))
        print(type(compiled).__name__, tuple(compiled(x).shape))
        with tempfile.TemporaryDirectory() as folder, open(f"{folder}/x", "w") as file:
            file.write("x")
        print(open("/dev/urandom", "rb").read(1) != b"")
        """,
        seconds=60,
        without=without,
    )
    assert ran.lines[-2:] == ["Linear (3,)", "True"]


def test_a_learners_file_may_import_transformers(run: Runner) -> None:
    pytest.importorskip("transformers")
    code = "from transformers.models.llama.modeling_llama import LlamaDecoderLayer as L; print(L.__name__)"
    assert run(code, seconds=60).lines[-1] == "LlamaDecoderLayer"


def test_the_folder_under_test_can_import_its_own_modules_whatever_their_names(run: Runner) -> None:
    (run.folder / "wire.py").write_text("mine = True")
    (run.folder / "driver.py").write_text("mine = True")
    assert run("import wire, driver\nprint(wire.mine, driver.mine)").lines == ["True True"]


def test_sandboxes_share_one_server(tmp_path: Path) -> None:
    with Sandbox(tmp_path, seconds=60) as one, Sandbox(tmp_path, seconds=60) as other:
        server = fork_server.running()
        assert one.ask({"op": "forget"}) == other.ask({"op": "forget"}) == {}
        assert len(_below_the_server()) >= 4  # two children and their keepers
    assert fork_server.running() is server


def test_a_server_that_died_is_started_again(tmp_path: Path) -> None:
    server = fork_server.running()
    server.wait_until_ready()
    os.kill(server.pid, signal.SIGKILL)
    while server.is_alive:
        time.sleep(0.01)
    with Sandbox(tmp_path, seconds=60) as sandbox:
        assert sandbox.ask({"op": "forget"}) == {}
    assert fork_server.running().pid != server.pid


def test_where_there_is_no_fork_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_server.stop()
    monkeypatch.delattr(os, "fork")
    with pytest.raises(SandboxError, match="needs fork"):
        Sandbox(tmp_path, seconds=1)


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_server.stop()
    (tmp_path / "server.py").write_text("raise SystemExit('no torch here')")
    monkeypatch.setattr(fork_server, "SCRIPT", tmp_path / "server.py")
    with pytest.raises(SandboxError, match="no torch here"):
        Sandbox(tmp_path, seconds=1)
    fork_server.stop()


def test_the_environment_holds_no_secrets(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_server.stop()  # as the test above did: starting one takes seconds
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    assert run("import os; print('s3cret' in str(dict(os.environ)))").lines == ["False"]


# How it ends.


def test_the_deadline_ends_a_loop_and_every_later_question(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("print('begun', flush=True)\nwhile True: pass")
    fork_server.running().wait_until_ready()
    start = time.monotonic()
    with Sandbox(tmp_path, seconds=1) as sandbox:
        with pytest.raises(EndedError) as first:
            sandbox.ask(load(tmp_path / "loop.py"))
        assert time.monotonic() - start < 3
        with pytest.raises(EndedError) as second:
            sandbox.ask({"op": "forget"})
    assert first.value is second.value
    assert first.value.reason == "timeout"
    assert sandbox.printed == "begun\n"


def test_the_deadline_also_holds_between_questions(tmp_path: Path) -> None:
    with Sandbox(tmp_path, seconds=0.2) as sandbox:
        time.sleep(0.3)
        with pytest.raises(EndedError) as ended:
            sandbox.ask({"op": "forget"})
    assert ended.value.reason == "timeout"


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        ("import os; os._exit(3)", "died", "exited with status 3"),
        ("import ctypes; ctypes.string_at(0)", "died", "SIGSEGV"),
        ("import os; os.write(4, b'{\"passed\": true}')", "protocol", "does not begin like a reply"),
        ("import os; os.write(4, b'PRN1' + bytes([255]) * 12)", "output", "at most"),
        ("import sys; sys.modules['_prenorm_child.driver'].Driver.handle = lambda *a: {'y': 1}", "protocol", "form"),
        ("import os; os.close(4)", "died", "exited with status 1"),
    ],
)
def test_an_end_has_a_reason(run: Runner, code: str, reason: str, detail: str) -> None:
    ended = run(code).ended
    assert ended is not None
    assert ended.reason == reason
    assert detail in ended.detail


@pytest.mark.long
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("while True: pass")
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, pathlib, threading, time
            from prenorm.checks.subject import fork_server
            from prenorm.checks.subject.sandbox import Sandbox
            sandbox = Sandbox(pathlib.Path({str(tmp_path)!r}), seconds=100)
            ask = {load(tmp_path / "loop.py")!r}
            threading.Thread(target=sandbox.ask, args=(ask,), daemon=True).start()
            time.sleep(0.2)
            print(fork_server.running().pid, flush=True)
            os.kill(os.getpid(), 9)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(prenorm.__file__).parent.parent)}
    parent = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, env=environment, check=False)
    assert parent.returncode == -9
    server = int(parent.stdout)
    deadline = time.monotonic() + 10
    while _runs_server(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs_server(server)


@pytest.mark.parametrize("without", [(), ("namespaces",)])
def test_it_ends_with_its_keeper(tmp_path: Path, without: tuple[str, ...]) -> None:
    (tmp_path / "loop.py").write_text("while True: pass")
    with Sandbox(tmp_path, seconds=20, without=without) as sandbox:

        def ask() -> None:
            with contextlib.suppress(EndedError):
                sandbox.ask(load(tmp_path / "loop.py"))

        asking = threading.Thread(target=ask)
        asking.start()
        (keeper,) = (process for process in _below_the_server() if parent_of(process) == fork_server.running().pid)
        os.kill(keeper, signal.SIGKILL)
        asking.join(10)
        assert not asking.is_alive()
        with pytest.raises(EndedError, match="died"):
            sandbox.ask({"op": "forget"})


def test_its_temporary_folder_ends_with_it(run: Runner) -> None:
    for without in ((), ("mounts",)):
        ran = run("import os; open('x', 'w').write('x'); print(os.getcwd(), os.environ['HOME'])", without=without)
        folder, home = ran.lines[0].split()
        assert folder == home
        assert not os.path.exists(folder)


# What it may know.


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("without", "needed"), [((), "landlock"), (("mounts",), "landlock"), (("landlock",), "mounts")]
)
def test_prenorm_is_importable_only_where_it_shall_be(
    run: Runner, has: Callable[..., None], without: tuple[str, ...], needed: str
) -> None:
    has(needed)
    code = """
        import importlib, os, sys
        try:
            import prenorm.functional
            print("imported")
        except (ImportError, OSError):  # found where it may not be read, or not found
            print("not importable")
        sys.modules.pop("prenorm", None)
        sys.path.insert(0, {folder!r})
        try:
            print(len(open({file!r}).read()) > 0)
        except OSError:
            print("not readable")
        try:
            import prenorm.errors
            print("imported")
        except (ImportError, OSError):  # found where it may not be read, or not found
            print("not importable")
    """
    file = Path(prenorm.__file__)
    code = code.format(file=str(file), folder=str(file.parent.parent))
    assert run(code, without=without).lines == ["imported", "True", "imported"]
    ran = run(code, without=without, prenorm_importable=False)
    assert ran.lines == ["not importable", "not readable", "not importable"]


def test_what_is_printed_is_bounded_and_harmless(run: Runner) -> None:
    ran = run("print('\\x1b[2J')\nfor _ in range(100): print('x' * 100_000)", limits=Limits(printed=1000))
    assert ran.lines[0] == "?[2J"
    assert sum(map(len, ran.lines)) < 1000


@pytest.mark.parametrize("without", [(), ("mounts",), LAYERS])
def test_it_holds_no_descriptor_but_its_own(run: Runner, without: tuple[str, ...]) -> None:
    code = """
        import os, stat
        def kind(number):
            try:
                mode = os.fstat(number).st_mode
            except OSError:
                return "-"
            return "pipe" if stat.S_ISFIFO(mode) else "device" if stat.S_ISCHR(mode) else "other"
        kinds = [kind(number) for number in range(1000)]
        print(kinds[:5], set(kinds[5:]))
    """
    own = ["device", "pipe", "pipe", "pipe", "pipe"]  # nothing to read, two for what it prints, requests, replies
    assert run(code, without=without).lines == [f"{own} {{'-'}}"]


@pytest.mark.parametrize("without", [(), ("mounts",), ("landlock",)])
def test_the_harmless_devices_work(run: Runner, without: tuple[str, ...]) -> None:
    code = """
        print(open("/dev/null", "w").write("x"), len(open("/dev/urandom", "rb").read(3)))
    """
    assert run(code, without=without).lines == ["1 3"]


# What it may use.


def test_memory_is_limited(run: Runner) -> None:
    code = """
        import torch
        for gibibytes in (0.1, 2):
            try:
                torch.ones(int(gibibytes * 2**28))
                print("given")
            except RuntimeError:
                print("refused")
    """
    assert run(code, limits=Limits(memory=1 << 30)).lines == ["given", "refused"]


def test_open_files_and_file_sizes_are_limited(run: Runner) -> None:
    code = """
        import os, signal
        held = []
        try:
            while len(held) < 1000: held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            print(error.errno, len(held) < 30)
        os.close(held.pop())
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            open("big", "wb").write(bytes(1 << 21))
        except OSError as error:
            print(error.errno)
    """
    assert run(code, limits=Limits(open_files=30, file=1 << 20)).lines == ["24 True", "27"]


@pytest.mark.parametrize("without", [(), ("mounts",), LAYERS])
def test_its_folder_is_limited(run: Runner, without: tuple[str, ...]) -> None:
    code = """
        import time
        try:
            for n in range(1000):
                open(str(n), "wb").write(bytes(1 << 20))
            time.sleep(5)
            print("unlimited")
        except OSError as error:
            print(error.errno)
    """
    ran = run(code, limits=Limits(folder=10 << 20), without=without)
    assert ran.lines == ["28"] or (ran.ended is not None and "folder was too full" in ran.ended.detail)


def test_processor_time_is_limited_below_the_deadline_of_the_parent(run: Runner) -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_CORE))"
    assert run(code, seconds=20).lines == ["(22, 23) (0, 0)"]


# Each layer alone, and then none of them.

READ = """
try:
    print(open({secret!r}).read())
except OSError as error:
    print(error.errno)
"""
WRITE = """
import os
try:
    os.write(os.open({outside!r}, os.O_WRONLY | os.O_CREAT), b"x")  # open(), at import, would write nowhere
    print("written")
except OSError as error:
    print(error.errno)
"""
CHMOD = """
import os
try:
    os.chmod(__file__, 0o600)
    print("changed")
except OSError as error:
    print(error.errno)
"""
FORK = """
import os, threading
try:
    if os.fork() == 0:
        os.setsid()
        while True: pass
    print("forked")
except OSError as error:
    print(error.errno)
"""
CONNECT = """
import socket
try:
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port}))
    print("sent")
except OSError as error:
    print(error.errno)
"""
KILL = """
import os
try:
    os.kill({victim}, 9)
    print("killed")
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "secret").write_text("s3cret")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    with socket.socket(type=socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        yield {
            "secret": str(tmp_path / "secret"),
            "outside": str(tmp_path / "outside"),
            "port": listening.getsockname()[1],
            "victim": victim.pid,
        }
    victim.kill()
    victim.wait()


@pytest.mark.parametrize(
    ("layers", "code", "errno"),
    [
        (["namespaces"], CONNECT, "101"),  # the network is unreachable: there is none
        (["namespaces"], KILL, "3"),  # no such process
        (["namespaces", "mounts"], READ, "2"),  # no such file
        (["namespaces", "mounts"], WRITE, "30"),  # a read-only file system
        (["namespaces", "mounts"], CHMOD, "30"),
        (["landlock"], READ, "13"),  # permission denied
        (["landlock"], WRITE, "13"),
        (["seccomp"], CHMOD, "1"),  # not permitted
        (["seccomp"], FORK, "1"),
        (["seccomp"], CONNECT, "1"),
        (["seccomp"], KILL, "1"),
        (LAYERS, READ, "2"),
        (LAYERS, WRITE, "30"),
        (LAYERS, CHMOD, "1"),
        (LAYERS, FORK, "1"),
        (LAYERS, CONNECT, "1"),
        (LAYERS, KILL, "1"),
    ],
)
def test_a_layer_refuses_by_itself(
    run: Runner, has: Callable[..., None], places: dict[str, Any], layers: list[str], code: str, errno: str
) -> None:
    has(*layers)
    assert run(code.format(**places), **only(*layers)).lines == [errno]


@pytest.mark.parametrize(
    ("code", "line"),
    [(READ, "s3cret"), (WRITE, "written"), (CHMOD, "changed"), (CONNECT, "sent"), (KILL, "killed")],
)
def test_without_any_layer_nothing_refuses(run: Runner, places: dict[str, Any], code: str, line: str) -> None:
    assert run(code.format(**places), without=LAYERS).lines == [line]


@pytest.mark.parametrize("layers", [["namespaces"], []])
def test_children_that_could_be_started_end_with_it(run: Runner, has: Callable[..., None], layers: list[str]) -> None:
    has(*layers)
    if os.getuid() != 0:
        pytest.skip("an ordinary user's limit on processes lets none be started")
    assert run(FORK, **only(*layers)).lines == ["forked"]  # `run` sees that nothing is left


@pytest.mark.parametrize("layer", LAYERS)
def test_it_says_which_layer_holds_and_which_is_missing(run: Runner, has: Callable[..., None], layer: str) -> None:
    has(*LAYERS)
    without = {layer, "mounts"} if layer == "namespaces" else {layer}
    for held in (True, False):
        lines = run("", without=() if held else without).confinement
        assert any(line.startswith(WORDS[layer]) for line in lines) == held
        assert any(line.startswith("no ") for line in lines) != held


def test_what_is_missing_is_named_by_what_it_lets_through(run: Runner) -> None:
    lines = run("", without=LAYERS).confinement
    said = "\n".join(lines)
    for words in ("files outside can be read", "the network can be reached", "mode, owner and times"):
        assert words in said


def _below_the_server() -> set[int]:
    server = fork_server.running()
    with contextlib.suppress(OSError):
        return descendants(server.pid)
    return set()


def _runs_server(process: int) -> bool:
    """Whether process, or any fork of it, still runs."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if int(status[3]) == process and status[0] != "Z":  # the server leads a session of its own
                    return True
    return False
