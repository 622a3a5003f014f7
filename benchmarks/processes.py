"""Contestants that have a process each, as their users have, and run in turn."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PAUSE = 0.02  # seconds: threads that have finished go on looking for work for some milliseconds


class Process:
    """One of the two, in its own process."""

    def __init__(self, contestant: Callable[..., Any], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=serve, args=(far_end, contestant, given), daemon=True)
        self.process.start()
        far_end.close()
        self.pipe.recv()

    def ask(self, name: str, *given: Any) -> tuple[Any, float]:
        """What the method gives, and the seconds that it took."""
        self.pipe.send((name, given))
        return self.pipe.recv()

    def end(self) -> None:
        """Give its memory back."""
        self.pipe.close()
        self.process.join()


def serve(pipe: Connection, contestant: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """Do what is asked for over a pipe, one thing after the other, until it is closed."""
    made = contestant(*given)
    pipe.send("ready")
    while True:
        try:
            name, asked = pipe.recv()
        except EOFError:
            return
        time.sleep(PAUSE)
        start = time.perf_counter()
        result = getattr(made, name)(*asked)
        pipe.send((result, time.perf_counter() - start))
