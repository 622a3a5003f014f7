"""`prenorm train` in several processes, forked from one warm process, with the variables that torchrun would set."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .processes import FORKS


class Command:
    """`prenorm train ARGV` as each of several ranks, as if started by hand.

    before: called with the rank in each process first; it may change what a step does. environ: variables of a rank
    beside the usual ones. ranks: those that are started, all unless given.
    """

    def __init__(
        self,
        argv: Sequence[object],
        world_size: int,
        tmp_path: Path,
        *,
        before: Callable[[int], None] | None = None,
        argv_of: Mapping[int, Sequence[object]] | None = None,
        environ: Mapping[int, Mapping[str, str]] | None = None,
        ranks: Sequence[int] | None = None,
    ) -> None:
        port = free_port()
        self.outputs: dict[int, Path] = {}
        self.processes = {}
        for rank in range(world_size) if ranks is None else ranks:
            self.outputs[rank] = tmp_path / f"rank-{rank}-{port}.txt"
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                **(environ or {}).get(rank, {}),
            }
            words = [str(word) for word in (*argv, *(argv_of or {}).get(rank, ()))]
            process = FORKS.Process(
                target=_rank, args=(rank, words, variables, str(self.outputs[rank]), before), daemon=True
            )
            process.start()
            self.processes[rank] = process

    def codes(self, timeout: float = 60) -> dict[int, int | None]:
        """The exit code of each rank, None for one that has not ended in time. All are dead afterwards."""
        end = time.monotonic() + timeout
        for process in self.processes.values():
            process.join(max(0.0, end - time.monotonic()))
        codes = {rank: process.exitcode for rank, process in self.processes.items()}
        for rank in self.processes:
            self.kill(rank)
            self.processes[rank].join()
        return codes

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank that is still there."""
        process = self.processes[rank]
        if process.is_alive():
            os.kill(process.pid or 0, number)

    def output(self, rank: int) -> str:
        """What a rank wrote to its terminal."""
        return self.outputs[rank].read_text()

    def wait_for(self, rank: int, text: str, timeout: float = 30) -> None:
        """Wait until a rank has written this."""
        end = time.monotonic() + timeout
        while text not in (self.output(rank) if self.outputs[rank].exists() else ""):
            assert time.monotonic() < end, self.output(rank)
            time.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _rank(
    rank: int, argv: list[str], variables: Mapping[str, str], output: str, before: Callable[[int], None] | None
) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    import torch

    import prenorm.training.trainer
    from prenorm.cli.main import main

    torch.set_num_threads(1)
    vars(prenorm.training.trainer)["product_rate"] = lambda device: 1e9
    if before:
        before(rank)
    code = main(["train", *argv])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
