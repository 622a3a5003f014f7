"""RUN/logs/rank-N.log: what one of several processes of a run has to say, each line with its time."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

FOLDER = "logs"


class RankLog:
    """The log of a rank. What is written before the run's folder is there waits for it.

    Of all ranks but the first everything goes there that the process would show, such as the warnings of libraries.
    terminal: the descriptor of what would have shown it.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.terminal = rank, 2
        self._shown: list[int] = []  # standard output and standard error as they were
        self._waiting: list[str] = []
        self._file: IO[str] | None = None

    def open(self, run: Path) -> None:
        """Write to the run's folder from now on, after what earlier parts of the run have left there."""
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        self._file = (run / FOLDER / f"rank-{self.rank}.log").open("a", encoding="utf-8")
        for line in self._waiting:
            self._add(line)
        self._waiting.clear()
        if self.rank:
            _flush()
            self._shown = [os.dup(number) for number in (1, 2)]
            self.terminal = self._shown[1]
            for number in (1, 2):
                os.dup2(self._file.fileno(), number)

    def write(self, text: str) -> None:
        """Add a line; it survives the death of the process."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._file:
            self._add(line)
        else:
            self._waiting.append(line)

    def _add(self, line: str) -> None:
        assert self._file is not None
        with suppress(OSError):  # a full disk is reported by what must be written
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Nothing is written any more, and the process shows again what it has to say."""
        _flush()
        for number, shown in enumerate(self._shown, start=1):
            os.dup2(shown, number)
            os.close(shown)
        self._shown, self.terminal = [], 2
        if self._file:
            self._file.close()
        self._file = None


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
