"""A confined process for code that nobody trusts. It is asked for numbers; what they are worth is judged elsewhere."""

import contextlib
import dataclasses
import json
import os
import select
import shutil
import tempfile
import time
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any

from . import fork_server, replies
from .child import wire
from .child.limits import Limits
from .fork_server import SandboxError
from .protocol import EndedError

__all__ = ["Limits", "Sandbox", "SandboxError"]

DEFAULT_LIMITS = Limits()
PACKAGE = Path(__file__).resolve().parents[2]
_FAREWELL = 1.5  # seconds that ending a child may take: it gives back up to Limits.memory


class Sandbox:
    """One confined child that imports, builds and runs what lies in folders. A context manager.

    It has no network, starts no process or thread, reads Python's own folders and `folders`, writes only a temporary
    folder that ends with it, and is killed with all that is its own when `seconds` are over; they begin when it is
    ready to work. What this system cannot do of it, `confinement` says. The child is whatever the learner's code makes
    of it: a reply has the form of a reply, and no more is certain about it.
    without: layers to leave out ("namespaces", "mounts", "landlock", "seccomp"), for tests of the others.
    Raises SandboxError if there can be none here.
    """

    confinement: tuple[str, ...]
    deadline: float
    """When the seconds are over, of time.monotonic()."""

    def __init__(
        self,
        *folders: Path,
        seconds: float | int,
        prenorm_importable: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        without: Collection[str] = (),
    ) -> None:
        server = fork_server.running()
        server.wait_until_ready()
        self._limits = limits
        self.deadline = time.monotonic() + seconds
        self._ended: EndedError | None = None
        self._printed = bytearray()
        self._said = b""  # by the keeper
        self._scratch = os.path.realpath(tempfile.mkdtemp(prefix="prenorm-check-"))
        package = str(PACKAGE)
        order = {
            # Both spellings, where one goes by symbolic links: requests may use either.
            "readable": [spell(one) for one in folders for spell in (os.path.abspath, os.path.realpath)]
            + ([package] if prenorm_importable else []),
            "hidden": [] if prenorm_importable else [package],
            "package": package if prenorm_importable else None,
            "scratch": self._scratch,
            "seconds": seconds,
            "limits": dataclasses.asdict(limits),
            "without": sorted(without),
        }
        output, child_output = os.pipe()
        child_requests, requests = os.pipe()
        replies_end, child_replies = os.pipe()
        status, child_status = os.pipe()
        child_lifeline, lifeline = os.pipe()
        theirs = [child_output, child_requests, child_replies, child_status, child_lifeline]
        self._output, self._requests, self._replies, self._status = output, requests, replies_end, status
        self._lifeline = lifeline
        self._open = {output, requests, replies_end, status, lifeline}
        os.set_blocking(requests, False)
        try:
            try:
                server.fork(order, theirs)
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
            self.confinement = self._await_confinement()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    @property
    def printed(self) -> str:
        """What the learner's code wrote to stdout and stderr, its first Limits.printed bytes."""
        return wire.harmless(self._printed.decode(errors="replace"))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's reply, in the form that child/driver.py gives it.

        EndedError when there is none; the child has then ended, and every later call raises the same.
        """
        frame = wire.encode(request)
        if self._ended is None:
            try:
                return replies.checked(request["op"], self._exchange(frame))
            except wire.TooLongError as error:
                self._ended = EndedError("output", str(error))
            except wire.WireError as error:
                self._ended = EndedError("protocol", f"what it sent is no reply: {error}")
            except EndedError as error:
                self._ended = error
            self._ended.during = request["op"]
            self.close()
        raise self._ended

    def close(self) -> None:
        """End the child, and return when it is gone with everything that it had."""
        self._ended = self._ended or EndedError("died", "the sandbox was closed")
        if not self._open:
            return
        self._shut(self._lifeline)
        self._shut(self._requests)
        self._shut(self._replies)
        deadline = time.monotonic() + _FAREWELL
        with contextlib.suppress(TimeoutError, RecursionError):  # a keeper that needs longer goes on by itself
            while self._hear(deadline):
                pass
            shutil.rmtree(self._scratch, ignore_errors=True)  # is there still if the keeper was killed, or never made
        for descriptor in list(self._open):
            self._shut(descriptor)

    def _exchange(self, frame: bytes) -> dict[str, Any]:
        reader = wire.Reader(self._limits.reply)
        rest = memoryview(frame)
        began = time.monotonic()
        while reader.wanted:
            ready = self._poll([self._output, self._replies], [self._requests] if rest else [], self.deadline)
            if not ready:
                raise EndedError("timeout", "the time limit ran out", time.monotonic() - began)
            if self._requests in ready:
                with contextlib.suppress(BlockingIOError, BrokenPipeError):  # the end of its replies says the rest
                    rest = rest[os.write(self._requests, rest[: 1 << 16]) :]
            if self._replies in ready:
                if not (piece := os.read(self._replies, 1 << 20)):
                    raise EndedError("died", self._how_it_ended())
                reader.feed(piece)
        return reader.value()

    def _poll(self, to_read: list[int], to_write: list[int], deadline: float) -> list[int]:
        """The descriptors that are ready, all but the output, which is emptied here; none when the time is up."""
        while (left := deadline - time.monotonic()) > 0:
            poll = select.poll()
            for descriptor in to_read:
                if descriptor in self._open:
                    poll.register(descriptor, select.POLLIN)
            for descriptor in to_write:
                poll.register(descriptor, select.POLLOUT)
            ready = [descriptor for descriptor, _ in poll.poll(min(left, 60.0) * 1000)]
            if self._output in ready:
                ready.remove(self._output)
                piece = os.read(self._output, 1 << 16)
                self._printed += piece[: self._limits.printed - len(self._printed)]
                if not piece:
                    self._shut(self._output)
            if ready:
                return ready
        return []

    def _hear(self, deadline: float) -> bytes:
        """The next words of the keeper; empty at their end. TimeoutError when the time is up."""
        if not self._poll([self._output, self._status], [], deadline):
            raise TimeoutError
        words = os.read(self._status, 1 << 16)
        self._said += words
        return words

    def _await_confinement(self) -> tuple[str, ...]:
        deadline = max(self.deadline, time.monotonic() + 10)
        try:
            while b"\n" not in self._said and self._hear(deadline):
                pass
        except TimeoutError:
            raise SandboxError("the sandbox did not get ready in time") from None
        line, _, self._said = self._said.partition(b"\n")
        report = json.loads(line or b"{}")
        if "confinement" not in report:
            raise SandboxError(f"the sandbox could not be made: {report.get('failed', report)}")
        return tuple(report["confinement"])

    def _how_it_ended(self) -> str:
        with contextlib.suppress(TimeoutError):
            while b"\n" not in self._said and self._hear(time.monotonic() + _FAREWELL):
                pass
        line = self._said.partition(b"\n")[0]
        return str(json.loads(line)["ended"]) if line else "it ended"

    def _shut(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)
