"""A folder of submissions, each checked by itself: one that breaks never stops the others."""

import csv
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, PrenormError
from ..verdict import Verdict

Check = Callable[[str], Verdict]


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One learner's: a name, and FILE.py:CLASS; without a subject, the problem is why."""

    name: str
    subject: str | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A submission's verdict, or the problem that kept it from having one. seconds: of the whole check."""

    name: str
    verdict: Verdict | None
    problem: str = ""
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """passed, failed or problem."""
        if self.verdict is None:
            return "problem"
        return "passed" if self.verdict.passed else "failed"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "problem": self.problem,
            "seconds": round(self.seconds, 2),
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }


def find_submissions(folder: Path, pattern: str = "layers.py:TransformerBlock") -> list[Submission]:
    """Every subfolder and every .py file of a folder, in the order of their names.

    pattern: FILE.py:CLASS. FILE.py is looked for in a subfolder and all below it (it may have folders, and * and ?);
    of a .py file beside the subfolders only CLASS is used. Names that begin with . or _ are left out.
    Raises ConfigError for a pattern that is none, and a folder that is none or empty.
    """
    file, colon, name = pattern.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"a pattern is FILE.py:CLASS, such as layers.py:TransformerBlock, but it is {pattern!r}.")
    if not folder.is_dir():
        raise ConfigError(f"submissions lie in a folder, but {folder} is none.")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            found.append(_in_folder(path, file, name))
        elif path.suffix == ".py":
            found.append(Submission(name=path.name, subject=f"{path}:{name}"))
    if not found:
        raise ConfigError(f"{folder} has neither subfolders nor .py files; give the folder that holds all submissions.")
    return found


def check_all(submissions: Sequence[Submission], check: Check, *, workers: int | None = None) -> Iterator[Result]:
    """Check them, each in one of a few processes, and give the results as they come.

    check: a function that a process can be handed (of a module, or a functools.partial of one). workers: by default as
    many as there are cores for this process. Whatever a check raises is that submission's problem alone. When a worker
    itself dies, those that were in work are checked again, one at a time.
    """
    for one in submissions:
        if one.subject is None:
            yield Result(name=one.name, verdict=None, problem=one.problem)
    waiting = [one for one in submissions if one.subject is not None]
    if not waiting:
        return
    workers = workers or len(os.sched_getaffinity(0))
    unfinished = []
    for one, result in _checked(waiting, check, min(workers, len(waiting))):
        if result is None:
            unfinished.append(one)
        else:
            yield result
    for one in unfinished:
        for _, result in _checked([one], check, 1):
            yield result or Result(name=one.name, verdict=None, problem="the process that checked it died")


def in_order(results: Sequence[Result], submissions: Sequence[Submission]) -> list[Result]:
    """Results in the order of their submissions."""
    place = {one.name: number for number, one in enumerate(submissions)}
    return sorted(results, key=lambda result: place[result.name])


def to_csv(results: Sequence[Result]) -> str:
    """A table for spreadsheets: name, outcome, faults (their ids), problem, seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "outcome", "faults", "problem", "seconds"])
    for one in results:
        faults = " ".join(one.verdict.ids) if one.verdict else ""
        writer.writerow([*map(_cell, (one.name, one.outcome, faults, one.problem)), f"{one.seconds:.1f}"])
    return text.getvalue()


def print_table(results: Sequence[Result]) -> None:
    """The same for people, with how often each fault occurs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("submission", "outcome", "faults", "seconds")
    for one in results:
        faults = ", ".join(one.verdict.ids) if one.verdict else one.problem
        table.add_row(escape(one.name), one.outcome, escape(faults), f"{one.seconds:.1f}")
    ids = [id for one in results if one.verdict for id in one.verdict.ids]
    counts = sorted(((ids.count(id), id) for id in set(ids)), key=lambda one: (-one[0], one[1]))
    console = Console()
    console.print(table)
    console.print(", ".join(f"{sum(one.outcome == kind for one in results)} {kind}" for kind in _OUTCOMES))
    if counts:
        console.print("faults: " + ", ".join(f"{id} {count}" for count, id in counts))


_OUTCOMES = ("passed", "failed", "problem")


def _in_folder(path: Path, file: str, name: str) -> Submission:
    found = sorted(one for one in path.rglob(file) if one.is_file() and not _hidden(one.relative_to(path)))
    if not found:
        return Submission(name=path.name, problem=f"it has no {file}")
    if len(found) > 1:
        listed = ", ".join(str(one.relative_to(path)) for one in found[:4])
        return Submission(name=path.name, problem=f"it has {file} more than once: {listed}")
    return Submission(name=path.name, subject=f"{found[0]}:{name}")


def _hidden(path: Path) -> bool:
    """In a folder that no learner writes: .venv, __pycache__, __MACOSX."""
    return any(part.startswith((".", "__")) for part in path.parts[:-1])


def _checked(
    submissions: Sequence[Submission], check: Check, workers: int
) -> Iterator[tuple[Submission, Result | None]]:
    """Each with its result, or with None where its process died."""
    # spawn: a fork of a process that has used torch's threads may never come back.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        running: dict[Future[Result], Submission] = {}
        waiting = list(submissions)
        while waiting or running:
            while waiting and len(running) < workers:  # few at a time: those in work are lost when one of them dies
                try:
                    running[pool.submit(_check_one, waiting[0], check)] = waiting[0]
                except BrokenProcessPool:
                    yield from ((one, None) for one in waiting)
                    waiting.clear()
                else:
                    waiting.pop(0)
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                one = running.pop(future)
                try:
                    yield one, future.result()
                except BrokenProcessPool:
                    yield one, None


def _check_one(submission: Submission, check: Check) -> Result:
    begun = time.perf_counter()
    assert submission.subject is not None
    try:
        verdict, problem = check(submission.subject), ""
    except PrenormError as error:
        verdict, problem = None, str(error)
    except Exception as error:  # our own mistake, or the system's: told, and the others go on
        verdict, problem = None, f"{type(error).__name__}: {error}"
    return Result(name=submission.name, verdict=verdict, problem=problem, seconds=time.perf_counter() - begun)


def _one_thread() -> None:
    """Processes share the cores; threads in each would only get in each other's way. Read when torch is loaded."""
    os.environ["OMP_NUM_THREADS"] = "1"


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
