"""The files of a folder, compared with its manifest before they are read or meanwhile."""

import functools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from .files import file_in
from .manifest import Listed, listed_now, read_manifest, refuse
from .sums import Blocks, has_sums

PATIENCE = 1.0  # seconds that an error waits for the hashes, of which one may be its cause


@contextmanager
def verified(folder: Path, names: Collection[str] | None = None) -> Iterator["Verification"]:
    """While a folder is read: its small files are compared first; when the context ends, all of them are.

    names: only these of them.
    Raises CheckpointError, naming every file that is missing or not as it was saved, also in place of an error that
    such a file has led to.
    """
    listed = {name: one for name, one in (read_manifest(folder) or {}).items() if names is None or name in names}
    check_files(folder, {name: one for name, one in listed.items() if not one.is_large})
    with ThreadPoolExecutor(os.cpu_count() or 1, "prenorm-hash") as threads:
        verification = Verification(folder, {name: one for name, one in listed.items() if one.is_large}, threads)
        try:
            try:
                yield verification
            except Exception as error:
                verification.start()
                refuse(folder, verification.problems(PATIENCE), error)
                raise
            verification.start()
            refuse(folder, verification.problems())
        finally:
            verification.stop()


def check_files(folder: Path, listed: Mapping[str, Listed]) -> None:
    """Raise CheckpointError, naming each, for files that are missing or not as they are listed."""
    never = threading.Event()
    refuse(folder, [(name, _problem(folder, name, one, never)) for name, one in listed.items()])


class Verification:
    """The comparison of a folder's large files with its manifest, by threads or by those who read them."""

    def __init__(self, folder: Path, listed: Mapping[str, Listed], threads: ThreadPoolExecutor) -> None:
        self._folder, self._threads, self._stop = folder, threads, threading.Event()
        self._listed, self._waiting = listed, dict(listed)  # all files, and those that no thread was started for
        self._blocks: dict[str, Blocks] = {}
        self._started: list[tuple[str, Future[str]]] = []

    def blocks_of(self, name: str) -> Blocks | None:
        """The blocks of a file, for a caller who reads most of it through them; what is left is compared later.

        None where there is nothing to compare, or threads do that.
        """
        listed = self._waiting.get(name)
        if listed is None or not has_sums(listed.size, listed.sums) or _problem_of_size(self._folder, name, listed):
            return None
        return self._blocks.setdefault(name, Blocks(file_in(self._folder, name), listed.size, listed.sums))

    def start(self, names: Collection[str] | None = None) -> None:
        """Compare these files (None: all) on threads, as far as nobody has compared them."""
        for name in [name for name in self._waiting if names is None or name in names]:
            for task in self._tasks(name):
                self._started.append((name, self._threads.submit(task)))
            del self._waiting[name]

    def problems(self, seconds: float | None = None) -> list[tuple[str, str]]:
        """Each file, and what is wrong with it or "", as known after so many seconds; None: when all is compared."""
        done, _ = wait([one for _, one in self._started], seconds)
        found = {name: one.result() for name, one in self._started if one in done}
        found |= {name: blocks.problem or found.get(name, "") for name, blocks in self._blocks.items()}
        return [(name, found.get(name, "")) for name in self._listed]

    def stop(self) -> None:
        """Let threads end early."""
        self._stop.set()

    def _tasks(self, name: str) -> list[Callable[[], str]]:
        """Calls that together look at what is left of a file: of its blocks, or as `_problem`."""
        blocks = self.blocks_of(name)
        if blocks is not None:
            return blocks.tasks(self._stop)
        return [functools.partial(_problem, self._folder, name, self._waiting[name], self._stop)]


def _problem(folder: Path, name: str, listed: Listed, stop: threading.Event) -> str:
    """What is wrong with a file; empty where nothing is. Hashing ends early, for nothing, once `stop` is set."""
    if problem := _problem_of_size(folder, name, listed):
        return problem
    same = listed_now(file_in(folder, name), stop).sha256 == listed.sha256
    return "" if same else "has other bytes than were saved (another SHA-256)"


def _problem_of_size(folder: Path, name: str, listed: Listed) -> str:
    if not os.path.lexists(folder / name):
        return "is missing"
    size = file_in(folder, name).stat().st_size
    return "" if size == listed.size else f"has {size:,} bytes instead of {listed.size:,}"
