"""What a run tells the person who waits: a progress bar on a terminal, plain lines elsewhere."""

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from ..errors import PrenormError
from .metrics import Record
from .rank_log import RankLog

Item = TypeVar("Item")
StepReport = Callable[[Record], None]


class Display:
    """Where a run speaks. With `json` standard output is kept for the result, and all this goes to standard error.

    log: where one of several processes writes, too, whatever is shown; of all of them only rank 0 is not quiet.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self._console = Console(stderr=json, quiet=quiet, soft_wrap=True, highlight=False)
        self.log: RankLog | None = None

    def is_one_of_several(self, rank: int) -> None:
        """From now on all that is said is written to a log, and shown by rank 0 alone."""
        self.log = RankLog(rank)
        self._console.quiet = self._console.quiet or rank > 0

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Closes the log, if there is one, at the end; an error that ends the run is in it before."""
        try:
            yield
        except BaseException as error:
            if self.log:
                lines = [] if isinstance(error, PrenormError) else traceback.format_exception(error)
                self.log.write("".join([f"ended with {type(error).__name__}: {error}\n", *lines]).rstrip())
            raise
        finally:
            if self.log:
                self.log.close()

    def log_to(self, run: Path) -> None:
        """The folder of the run is there: the log, if there is one, goes there."""
        if self.log:
            self.log.open(run)

    def say(self, text: str) -> None:
        """One line, as it is."""
        self._console.print(text, markup=False)
        self.note(text)

    def alarm(self, text: str) -> None:
        """A line that every process shows, quiet ones too: why it ends."""
        os.write(self.log.terminal if self.log else 2, f"prenorm train: {text}\n".encode())
        self.note(text)

    def note(self, text: str) -> None:
        """Something for the log alone."""
        if self.log:
            self.log.write(text)

    def evaluation(self, record: Record) -> None:
        """What a look at the held-out text gave."""
        average = f"; averaged weights {record['ema_eval_loss']:.3f}" if "ema_eval_loss" in record else ""
        self.say(
            f"step {record['step']:,}: held-out loss {record['eval_loss']:.3f} nats per token, "
            f"{record['eval_bits_per_byte']:.3f} bits per byte{average}"
        )

    def sample(self, step: int, record: Record) -> None:
        """What a model wrote after a step."""
        self.say(f"step {step:,}: it writes, after {record['prompt']!r}:\n\n{record['prompt']}{record['text']}\n")

    def working(self, what: str) -> AbstractContextManager[object]:
        """Shows on a terminal that something is under way whose end nobody can foresee."""
        return self._console.status(what)

    @contextmanager
    def steps(self, *, done: int, total: int, line_seconds: float) -> Iterator[StepReport]:
        """Progress over optimiser steps: a bar, or a line every `line_seconds` where there is no terminal."""
        if not self._console.is_terminal:
            yield self._step_lines(total, line_seconds, self.say)
            return
        lines = self._step_lines(total, line_seconds, self.note) if self.log else None
        columns = ("training", BarColumn(), MofNCompleteColumn(), "{task.fields[news]}", TimeRemainingColumn(), "left")
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("", completed=done, total=total, news="the first step takes longest")

            def report(record: Record) -> None:
                progress.update(task, completed=record["step"], news=_news(record))
                if lines:
                    lines(record)

            yield report

    def _step_lines(self, total: int, seconds: float, say: Callable[[str], None]) -> StepReport:
        """Plain lines of progress: the first step, one every so often, the last step."""
        first: tuple[int, float] | None = None  # a step and when it ended: the first one also compiles
        latest = float("-inf")

        def report(record: Record) -> None:
            nonlocal first, latest
            now, step, left = time.monotonic(), record["step"], ""
            if step < total and now - latest < seconds:
                return
            if first:
                left = f", {clock((now - first[1]) / (step - first[0]) * (total - step))} left"
            latest, first = now, first or (step, now)
            say(f"step {step:,} of {total:,}: {_news(record)}{left}")

        return report

    def track(self, items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
        """The items, with a bar on a terminal."""
        if not self._console.is_terminal:
            self.say(f"{what} ...")
            yield from items
            return
        with Progress(what, BarColumn(), TimeRemainingColumn(), console=self._console) as progress:
            yield from progress.track(items, total=total)

    def table(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Names and numbers under a title."""
        table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
        table.add_column()
        table.add_column(justify="right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)


def _news(record: Record) -> str:
    loss = f"skipped ({record['skipped']})" if "skipped" in record else f"loss {record['loss']:.3f}"
    news = f"{loss}, {record['tokens_per_second']:,.0f} tokens/s"
    if "mfu_causal" not in record:  # of a model that has no account of its operations
        return news
    return f"{news}, MFU {record['mfu_causal']:.0%} (6N + attention: {record['mfu_6n_attention']:.0%})"


def clock(seconds: float) -> str:
    """A duration as 4:07 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
