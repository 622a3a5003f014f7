"""The parent's side of child/server.py: one process per parent that has torch loaded and forks confined children."""

import atexit
import json
import os
import select
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ...errors import PrenormError

SCRIPT = Path(__file__).parent / "child" / "server.py"
STARTUP = 120.0  # seconds that loading torch may take
_KEPT = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")  # of the parent's environment; there are secrets in others
_SET = {
    "PATH": "/usr/bin:/bin",
    "USER": "nobody",  # /etc/passwd cannot be asked
    "LOGNAME": "nobody",
    "OMP_NUM_THREADS": "1",
    "OMP_THREAD_LIMIT": "1",  # a learner's torch.set_num_threads(4) would ask for threads, and there are none
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",  # no compiler can be started there
    "OPENSSL_CONF": os.devnull,
    "HF_HUB_OFFLINE": "1",
    "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
}


class SandboxError(PrenormError):
    """The sandbox cannot be made at all."""


class ForkServer:
    """The server process, started at once; `fork` waits until it is ready."""

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise SandboxError("the sandbox needs fork(), which this system has not; Linux and macOS have it")
        self._lock = threading.Lock()
        self._ready = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # it is open as long as the server lives
        ours, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _SET
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(SCRIPT), str(theirs.fileno()), json.dumps(_libraries())],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=environment,
                start_new_session=True,  # Ctrl-C is the parent's
            )
        self._control = ours

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Return when torch is loaded. SandboxError if it cannot be."""
        with self._lock:
            if not self._ready:
                self._expect(b"r", "it did not start")
                self._ready = True

    def fork(self, order: dict[str, Any], descriptors: list[int]) -> None:
        """Have a child made; see child/server.py for what an order holds."""
        self.wait_until_ready()
        with self._lock:
            try:
                text = json.dumps(order).encode() + b"\n"
                socket.send_fds(self._control, [text[:1]], descriptors)
                self._control.sendall(text[1:])
            except OSError as error:
                raise SandboxError(f"the process that starts sandboxes is gone: {error}") from None
            self._expect(b"s", "it started no child")

    def close(self) -> None:
        """End the server; children that were forked live on until their sandboxes end."""
        self._control.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _expect(self, answer: bytes, otherwise: str) -> None:
        deadline = time.monotonic() + STARTUP
        readable, _, _ = select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))
        try:
            got = self._control.recv(1) if readable else b""
        except OSError:
            got = b""
        if got != answer:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()[-1000:]
            raise SandboxError(f"the process that starts sandboxes failed: {otherwise}. It said: {said or 'nothing'}")


_server: ForkServer | None = None
_owner = 0
_starting = threading.Lock()


def running() -> ForkServer:
    """This process's server, started if there is none."""
    global _server, _owner
    with _starting:
        if _owner != os.getpid() or _server is None or not _server.is_alive:
            if _owner == os.getpid() and _server is not None:
                _server.close()
            elif _owner != os.getpid():
                atexit.register(stop)
            _server, _owner = ForkServer(), os.getpid()
        return _server


def stop() -> None:
    """End this process's server, if it has one."""
    global _server
    if _server is not None and _owner == os.getpid():
        _server.close()
        _server = None


def _libraries() -> list[str]:
    """Folders of packages that `python -I` leaves out: those of the user, and wherever else torch is imported from."""
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    others = [path for path in sys.path if os.path.isabs(path) and os.path.isfile(f"{path}/torch/__init__.py")]
    return [path for path in users + others if os.path.isdir(path)]
