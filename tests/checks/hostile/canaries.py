"""What must stay as it is, whatever a submission does: files, sockets and processes outside its sandbox."""

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prenorm.checks.subject import fork_server
from prenorm.checks.subject.sandbox import PACKAGE

TOKEN = "PRENORM_HOSTILE_TOKEN"  # an environment variable of this process


class Canaries:
    """A secret, a folder that anyone here could write in, listening sockets, and a process that wants to live."""

    def __init__(self, folder: Path) -> None:
        self.secret = f"secret_{secrets.token_hex(16)}"
        self.token = secrets.token_hex(16)
        os.environ[TOKEN] = self.token
        self.private, self.outside, self.submissions = (folder / name for name in ("private", "outside", "submissions"))
        self.private.mkdir()
        self.submissions.mkdir()
        self.victim = _victim()
        self.sockets = [
            _listening(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            _listening(socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0)),
            _listening(socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "door")),
            _listening(socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "door.datagram")),
            _listening(socket.AF_UNIX, socket.SOCK_STREAM, f"\0prenorm-hostile-{self.token}"),
        ]
        server = fork_server.running()
        server.wait_until_ready()
        self.server = server.pid
        self.folder = folder
        self.reset()
        self._others = descendants() - {self.server}

    @property
    def places(self) -> dict[str, object]:
        """Where they are, under the names that submission.SOURCE has for them."""
        return {
            "SECRET": self.private / "secret.txt",
            "OUTSIDE": self.outside,
            "PRECIOUS": self.outside / "precious",
            "FOLDER": self.submissions,
            "TCP": self.sockets[0].getsockname()[1],
            "UDP": self.sockets[1].getsockname()[1],
            "UNIX": self.folder / "door",
            "ABSTRACT": f"prenorm-hostile-{self.token}",
            "PARENT": os.getpid(),
            "SERVER": self.server,
            "VICTIM": self.victim.pid,
            "PACKAGE": PACKAGE,
        }

    def reset(self) -> None:
        """Make them again as they were, where a submission has touched them."""
        (self.private / "secret.txt").write_text(self.secret)
        shutil.rmtree(self.outside, ignore_errors=True)
        (self.outside / "empty").mkdir(parents=True)
        (self.outside / "precious").write_text("precious")
        if self.victim.poll() is not None:
            self.victim = _victim()
            self._others = descendants() - {self.server}

    def snapshot(self) -> dict[str, object]:
        """What can be changed by writing."""
        watched = [
            self.outside,
            *sorted(self.outside.rglob("*")),
            self.submissions,
            *sorted(self.submissions.iterdir()),
        ]
        state: dict[str, object] = {str(path): _state(path) for path in watched}
        for folder in ("/dev/shm", "/tmp", "/root"):
            with contextlib.suppress(OSError):
                state[folder] = [name for name in os.listdir(folder) if name.startswith("prenorm-hostile")]
        return state

    def touched(self, before: dict[str, object], said: str) -> list[str]:
        """What is not as it should be."""
        after = self.snapshot()
        wrong = [f"{name} has changed" for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        wrong += [f"{name} got out" for name in ("secret", "token") if getattr(self, name) in said]
        wrong += [f"socket {number} was reached" for number, one in enumerate(self.sockets) if _reached(one)]
        if self.victim.poll() is not None:
            wrong.append("a process outside was killed")
        server = fork_server.running()
        if server.pid != self.server:
            wrong.append("the server was killed")
        if left := self._left_behind():
            wrong.append(f"processes were left behind: {left}")
        return wrong

    def close(self) -> None:
        """Take them down."""
        self.victim.kill()
        self.victim.wait()
        for one in self.sockets:
            one.close()
        os.environ.pop(TOKEN, None)

    def _left_behind(self) -> set[int]:
        deadline = time.monotonic() + 20  # the keeper may still be removing the temporary folder
        while (left := descendants() - self._others - {self.server}) and time.monotonic() < deadline:
            time.sleep(0.005)
        return left


def descendants(process: int | None = None) -> set[int]:
    """Every process below process, or below this one; those that lost their parent are its own: `adopt_orphans`."""
    parents = {int(name): parent_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found, new = set(), {process or os.getpid()}
    while new:
        new = {process for process, parent in parents.items() if parent in new}
        found |= new
    return found


def parent_of(process: int) -> int:
    """The parent's id; 0 if process is no more."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
    return 0


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Be the parent of every process below that loses its own, so that none escapes `descendants`."""
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    yield
    prctl(36, 0, 0, 0, 0)


def _victim() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100000)"])


def _listening(family: int, kind: int, address: Any) -> socket.socket:
    one = socket.socket(family, kind)
    one.bind(address)
    if kind == socket.SOCK_STREAM:
        one.listen()
    one.setblocking(False)
    return one


def _reached(one: socket.socket) -> bool:
    try:
        if one.type == socket.SOCK_STREAM:
            one.accept()[0].close()
        else:
            one.recv(100)
    except BlockingIOError:
        return False
    return True


def _state(path: Path) -> object:
    if not os.path.lexists(path):
        return None
    status = path.lstat()
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return (status.st_mode, status.st_uid, status.st_mtime_ns, status.st_nlink, content, os.listxattr(path))
