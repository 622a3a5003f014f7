"""Measuring many cells at once, each in a process of one thread, until none is left or somebody stops it."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import torch

from ..errors import PrenormError
from ..training.signals import StopRequest, stop_on_signals
from .folder import Cell, Cells
from .progress import Progress

SECONDS_BETWEEN_LOOKS = 0.5  # at whether somebody wants the sweep to stop


class Plan(NamedTuple):
    """The cells to measure as far as they are known, and the cost of those that depend on their results."""

    cells: Sequence[Cell]
    later: float = 0.0


class Stopped(PrenormError):
    """A sweep that a signal ended. What was measured is kept."""

    def __init__(self, signal_number: int, measured: int, cells: Cells) -> None:
        super().__init__(
            f"stopped; all that is measured, {measured:,} cells of this command, is in {cells.path.parent}, "
            "and the same command goes on from there."
        )
        self.signal_number = signal_number


class WorkerDied(PrenormError):
    """A process that ended in the middle of a cell, such as one that the system killed for its memory."""


def sweep(plan: Callable[[], Plan], cells: Cells, *, workers: int, progress: Progress) -> None:
    """Measure all cells of a plan that are not there yet, the dearest first; the plan is asked again after each.

    Raises Stopped at SIGINT and SIGTERM, with every finished cell kept, and WorkerDied.
    """
    with stop_on_signals() as stop, _workers() as pool:
        while True:
            known, later = plan()
            known = list(dict.fromkeys(known))
            missing = [cell for cell in known if cells.get(cell) is None]
            progress.update(len(known) - len(missing), len(known), sum(one.cost for one in missing) + later)
            if not missing:
                return
            running = {worker.cell for worker in pool.busy()}
            waiting = sorted((cell for cell in missing if cell not in running), key=lambda cell: -cell.cost)
            for cell in waiting[: workers - len(running)]:
                pool.give(cell)
            _take(pool, cells, stop, len(known) - len(missing))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that measures one cell after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _ctrl_c_ignored():  # which a process inherits: the terminal sends it to all of them, but this one decides
            self.process.start()
        theirs.close()  # so that its death is the end of the connection
        self.cell: Cell | None = None


class _Pool:
    def __init__(self) -> None:
        self.workers: list[_Worker] = []

    def busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.cell is not None]

    def give(self, cell: Cell) -> None:
        """Have an idle worker, or a new one, measure this."""
        worker = next((worker for worker in self.workers if worker.cell is None), None)
        if worker is None:
            worker = _Worker()
            self.workers.append(worker)
        worker.cell = cell
        with suppress(OSError):  # it died before; taking its result will say so
            worker.connection.send(cell)


@contextmanager
def _workers() -> Iterator[_Pool]:
    pool = _Pool()
    try:
        yield pool
    finally:
        for worker in pool.workers:
            worker.process.kill()
        for worker in pool.workers:
            worker.process.join()
            worker.connection.close()


def _take(pool: _Pool, cells: Cells, stop: StopRequest, measured: int) -> None:
    """Wait for results, and keep them."""
    while True:
        ready = wait([worker.connection for worker in pool.busy()], SECONDS_BETWEEN_LOOKS)
        for worker in pool.busy():
            if worker.connection in ready and worker.cell is not None:
                cells.add(worker.cell, _result(worker))
                worker.cell, measured = None, measured + 1
        if stop.requested:
            raise Stopped(stop.signal_number, measured, cells)
        if ready:
            return


def _result(worker: _Worker) -> dict[str, object]:
    try:
        result, failure = worker.connection.recv()
    except (EOFError, OSError) as error:
        worker.process.join()
        raise WorkerDied(
            f"the process that measured {worker.cell} ended with code {worker.process.exitcode} (-9: killed, often for "
            "want of memory); what was measured before is kept, and the same command, with fewer --workers, goes on."
        ) from error
    if failure:
        raise RuntimeError(f"{worker.cell} cannot be measured:\n{failure}")
    return dict(result)


def _work(connection: Connection) -> None:
    """What a worker does until the connection ends, with the process at its other end."""
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            cell = connection.recv()
            try:
                answer = (cell.measure(), "")
            except Exception:
                answer = ({}, traceback.format_exc())
            connection.send(answer)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers nowhere else
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
