"""A folder of submissions, each checked on its own: one that fails never stops the others."""

import contextlib
import csv
import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import PrenormError
from ..faults import CRASHES
from ..verdict import NOT_JUDGED, Verdict
from .handed_in import Submission

Check = Callable[..., Verdict]
"""check(subject, within=folder or None)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A submission's verdict, or the reason why it has none. note: the submission's; seconds: of the whole check."""

    name: str
    verdict: Verdict | None
    problem: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """passed, failed or problem: one that could not be judged has neither passed nor failed."""
        if self.verdict is None or self.verdict.exit_code == NOT_JUDGED:
            return "problem"
        return "passed" if self.verdict.passed else "failed"

    @property
    def stopped_by(self) -> str:
        """What stopped the judgement: the problem, or what the code raised."""
        if self.verdict is None:
            return self.problem
        stops = {"passed": (), "failed": CRASHES, "problem": self.verdict.ids}[self.outcome]
        return next((one.evidence for one in self.verdict.findings if one.id in stops), "")

    @property
    def faults(self) -> list[str]:
        """The ids of the findings that count."""
        return [] if self.verdict is None else [one.id for one in self.verdict.faults]

    @property
    def others(self) -> list[str]:
        """The ids of the findings that do not count."""
        return [] if self.verdict is None else [one.id for one in self.verdict.findings if not one.counts]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "problem": self.problem,
            "note": self.note,
            "seconds": round(self.seconds, 2),
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }


def check_all(submissions: Sequence[Submission], check: Check, *, workers: int | None = None) -> Iterator[Result]:
    """Check submissions in a few processes, and yield the results as they come.

    check: a function that can be pickled (of a module, or a functools.partial of one). workers: by default the number
    of cores of this process. If a check raises, only its submission is affected. If a worker dies, the submissions
    that were being checked are checked again, one at a time.
    """
    for one in submissions:
        if one.subject is None:
            yield _without(one, one.problem)
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
            yield result or _without(one, "the process that checked it died")


def in_order(results: Sequence[Result], submissions: Sequence[Submission]) -> list[Result]:
    """Results in the order of their submissions."""
    place = {one.name: number for number, one in enumerate(submissions)}
    return sorted(results, key=lambda result: place[result.name])


COLUMNS = ("name", "outcome", "faults", "does not count", "problem", "note", "built as", "called as", "seconds")


def to_csv(results: Sequence[Result]) -> str:
    """A table for spreadsheets: name, outcome, ids of findings, what stopped it, a note, how it was built, seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in results:
        build, call = (one.verdict.build, one.verdict.call) if one.verdict else ("", "")
        found = (" ".join(one.faults), " ".join(one.others), one.stopped_by, one.note)
        writer.writerow([*map(_cell, (one.name, one.outcome, *found, build, call)), f"{one.seconds:.1f}"])
    return text.getvalue()


def groups(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Each fault with the submissions that have it, the most frequent first; crashes are grouped by their reason."""
    whose: dict[str, list[str]] = {}
    for one in results:
        found = [f"{id}: {one.stopped_by}" if id in CRASHES else id for id in one.faults]
        if one.outcome == "problem":
            found.append(f"problem: {one.stopped_by}")
        for name in found:
            whose.setdefault(name, []).append(one.name)
    return sorted(whose.items(), key=lambda item: (-len(item[1]), item[0]))


def print_table(results: Sequence[Result]) -> None:
    """The same for a terminal, with the frequency of each fault."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from .text import clean

    whole = [Column(name, overflow="fold") for name in ("submission", "outcome", "faults", "seconds")]
    table = Table(*whole)  # a name that is cut could be anybody's
    for one in results:
        faults = ", ".join(one.faults)
        if one.stopped_by:
            faults = f"{faults} ({one.stopped_by})" if faults else one.stopped_by
        if one.note:
            faults = f"{faults} [{one.note}]" if faults else f"[{one.note}]"
        table.add_row(escape(clean(one.name)), one.outcome, escape(clean(faults)), f"{one.seconds:.1f}")
    console = Console()
    console.print(table)
    console.print(", ".join(f"{sum(one.outcome == kind for one in results)} {kind}" for kind in _OUTCOMES))
    found = groups(results)
    if counts := [f"{name} {len(names)}" for name, names in found if ": " not in name]:
        console.print("faults: " + ", ".join(counts))
    if borrowed := [one.name for one in results if one.verdict and "from_prenorm" in one.verdict.conventions]:
        console.print(escape(clean(f"with prenorm's own classes: {', '.join(borrowed)}")))
    for name, names in found:
        if ": " in name and len(names) > 1:
            console.print(escape(clean(f"stopped {len(names)}: {name} ({', '.join(names)})")))


_OUTCOMES = ("passed", "failed", "problem")


def _checked(
    submissions: Sequence[Submission], check: Check, workers: int
) -> Iterator[tuple[Submission, Result | None]]:
    """Each with its result, or with None if its process died."""
    # spawn: a fork of a process that has used torch's threads may never come back.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool, _ending_together():
        running: dict[Future[Result], Submission] = {}
        waiting = list(submissions)
        while waiting or running:
            while waiting and len(running) < workers:  # few at a time: if a worker dies, all that are running are lost
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


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """End the workers with this process, on SIGTERM as on Ctrl-C; the pool would wait for what they are doing."""
    others = set(multiprocessing.active_children())
    terms = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if terms else None
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        if terms:
            signal.signal(signal.SIGTERM, before)


def _without(submission: Submission, problem: str) -> Result:
    """The result of a submission that is not judged."""
    return Result(name=submission.name, verdict=None, problem=problem, note=submission.note)


def _check_one(submission: Submission, check: Check) -> Result:
    begun = time.perf_counter()
    assert submission.subject is not None
    try:
        bounds = {} if submission.within is None else {"within": Path(submission.within)}
        verdict, problem = check(submission.subject, **bounds), ""
    except PrenormError as error:
        verdict, problem = None, str(error)
    except Exception as error:  # our own mistake, or the system's, is reported, and the others go on
        verdict, problem = None, f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begun
    return Result(name=submission.name, verdict=verdict, problem=problem, note=submission.note, seconds=seconds)


def _begin() -> None:
    """One thread per process, because the processes use all cores. torch reads this when it is loaded.

    Ctrl-C goes to all processes of a terminal; the first one ends the others.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cell(text: str) -> str:
    """A cell that no spreadsheet interprets as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
