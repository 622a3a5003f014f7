"""Real processes for tests: ranks forked from one warm process, in a gloo group over the loopback interface.

    results = run(function, 4, tmp_path, "an argument")     # [function("an argument") on rank 0, on rank 1, ...]

`function` is a module's own, so that it can be pickled by name; what it takes and gives is pickled, too (plain tensors,
no DTensors). Within it torch.distributed is initialised. A rank that raises, dies or does not end in time fails the
test with the tracebacks of all ranks that have one.
"""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.distributed.warm"])
GRACE = 3.0  # seconds that the other ranks have once one has failed


def run(function: Callable[..., Any], world_size: int, tmp_path: Path, *args: Any, timeout: float = 60) -> list[Any]:
    """What function(*args) gives on each rank. timeout: seconds that all of it may take."""
    ranks = Ranks(function, world_size, tmp_path, *args, timeout=timeout)
    try:
        return ranks.results()
    finally:
        ranks.kill()


class Ranks:
    """Processes that run function(*args), one a rank; `processes` are there to be killed or stopped."""

    def __init__(
        self, function: Callable[..., Any], world_size: int, tmp_path: Path, *args: Any, timeout: float = 60
    ) -> None:
        self.deadline = time.monotonic() + timeout
        store = tmp_path / f"store-{time.monotonic_ns()}"
        self.processes, self.pipes = [], []
        for rank in range(world_size):
            receiver, sender = FORKS.Pipe(duplex=False)
            process = FORKS.Process(
                target=_rank, args=(sender, function, rank, world_size, str(store), timeout, args), daemon=True
            )
            process.start()
            sender.close()
            self.processes.append(process)
            self.pipes.append(receiver)

    def results(self) -> list[Any]:
        """What each rank gave; an AssertionError with the tracebacks if one raised, died or was not done in time."""
        outcomes = self.outcomes()
        if all(kind == "gave" for kind, _ in outcomes):
            return [value for _, value in outcomes]
        told = "\n".join(
            f"rank {rank} {kind}: {value}" for rank, (kind, value) in enumerate(outcomes) if kind != "gave"
        )
        raise AssertionError(told)

    def outcomes(self) -> list[tuple[str, Any]]:
        """For each rank ("gave", a result), ("raised", a traceback), ("died", an exit code) or ("hung", "").

        Ranks that are not done soon after another one failed have hung: they wait for it.
        """
        outcomes: list[tuple[str, Any]] = [("hung", "") for _ in self.pipes]
        pending: dict[Any, int]
        pending, deadline = {pipe: rank for rank, pipe in enumerate(self.pipes)}, self.deadline
        while pending and (ready := wait(list(pending), max(0.0, deadline - time.monotonic()))):
            for pipe in ready:
                rank = pending.pop(pipe)
                outcomes[rank] = self._outcome(rank, pipe)  # type: ignore[arg-type]
                if outcomes[rank][0] != "gave":
                    deadline = min(deadline, time.monotonic() + GRACE)
        return outcomes

    def _outcome(self, rank: int, pipe: Connection) -> tuple[str, Any]:
        try:
            return pickle.loads(pipe.recv_bytes())
        except EOFError:
            self.processes[rank].join(GRACE)
            return "died", self.processes[rank].exitcode

    def kill(self) -> None:
        """End those that still run, stopped ones too."""
        for process in self.processes:
            with suppress(ProcessLookupError):  # it may end right now
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        for pipe in self.pipes:
            pipe.close()


def _rank(
    sender: Connection,
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    store: str,
    timeout: float,
    args: tuple[Any, ...],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world_size),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        outcome = "gave", function(*args)
        dist.barrier()  # a process that ends while another still talks to it aborts that one
        dist.destroy_process_group()
    except BaseException:
        outcome = "raised", traceback.format_exc()
    sender.send_bytes(pickle.dumps(outcome))
