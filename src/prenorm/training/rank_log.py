"""RUN/logs/rank-N.log: what one of several processes of a run has to say, each line with its time."""

import time
from contextlib import suppress
from pathlib import Path
from typing import IO

FOLDER = "logs"


class RankLog:
    """The log of a rank. What is written before the run's folder is there waits for it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._waiting: list[str] = []
        self._file: IO[str] | None = None

    def open(self, run: Path) -> None:
        """Write to the run's folder from now on, after what earlier parts of the run have left there."""
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        self._file = (run / FOLDER / f"rank-{self.rank}.log").open("a", encoding="utf-8")
        for line in self._waiting:
            self._add(line)
        self._waiting.clear()

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
        """Nothing is written any more."""
        if self._file:
            self._file.close()
        self._file = None
