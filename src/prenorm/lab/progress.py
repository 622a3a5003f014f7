"""How far a sweep is: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..training.display import clock

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Says on standard error how many cells there are, and how much time is left: that of the cost that is left."""

    def __init__(self, what: str, *, bar: Any = None, quiet: bool = False) -> None:
        self._what, self._bar, self._quiet = what, bar, quiet
        self._task = None if bar is None else bar.add_task(what, total=None, news="")
        self._first: tuple[float, float] | None = None  # when it was, and the cost that was left
        self._latest = float("-inf")

    def update(self, done: int, total: int, cost_left: float) -> None:
        """A cell has ended."""
        now = time.monotonic()
        self._first = self._first or (now, cost_left)
        began, cost = self._first
        left = f"{clock((now - began) / (cost - cost_left) * cost_left)} left" if cost_left < cost else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=cost - cost_left, total=cost, news=f"{done:,} of {total:,} {left}")
        elif not self._quiet and now - self._latest >= SECONDS_BETWEEN_LINES and cost_left:
            self._latest = now
            _say(f"{self._what}: {done:,} of {total:,} cells{', ' if left else ''}{left}")


@contextmanager
def shown_progress(what: str) -> Iterator[Progress]:
    """Progress on standard error, with a bar where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Progress(what)
        return
    with Bar("{task.description}", BarColumn(), "{task.fields[news]}", console=console) as bar:
        yield Progress(what, bar=bar)


def _say(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)
