"""A folder of submissions, each checked on its own: one that fails never stops the others."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from ...errors import PrenormError
from ..verdict import Verdict
from .handed_in import Submission
from .paths import inside
from .result import Result, without

Check = Callable[..., Verdict]
"""check(subject, within=folder or None)."""


def check_all(submissions: Sequence[Submission], check: Check, *, workers: int | None = None) -> Generator[Result]:
    """Check submissions in a few processes, and yield the results as they come.

    check: a function that can be pickled (of a module, or a functools.partial of one). workers: by default the number
    of cores of this process. If a check raises, only its submission is affected. If a worker dies, the submissions
    that were being checked are checked again, one at a time.
    """
    for one in submissions:
        if one.subject is None:
            yield without(one, one.problem)
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
            yield result or without(one, "the process that checked it died")


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


def _check_one(submission: Submission, check: Check) -> Result:
    begun = time.perf_counter()
    assert submission.subject is not None
    within = Path(submission.within or submission.subject.rpartition(":")[0])
    result = without(submission, "")
    try:
        bounds = {} if submission.within is None else {"within": within}
        result = replace(result, verdict=check(submission.subject, **bounds))
    except PrenormError as error:
        result = replace(result, problem=str(error))
    except Exception as error:  # our own mistake, or the system's, is reported, and the others go on
        result = replace(result, problem=f"{type(error).__name__}: {error}")
    told: Result = inside(result, within if within.is_dir() else within.parent)
    return replace(told, name=submission.name, seconds=time.perf_counter() - begun)


def _begin() -> None:
    """One thread per process, because the processes use all cores. torch reads this when it is loaded.

    Ctrl-C goes to all processes of a terminal; the first one ends the others.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
