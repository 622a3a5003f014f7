"""Ctrl-C, SIGTERM and SIGUSR1: the step is finished and a checkpoint is written before a run ends."""

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import PrenormError


class Stopped(PrenormError):
    """A run that a signal ended after `step`, when the checkpoint of that step was written."""

    def __init__(self, signal_number: int, step: int, folder: Path) -> None:
        super().__init__(
            f"stopped after step {step:,}, with a checkpoint; prenorm train --out {shlex.quote(str(folder))} --resume "
            "goes on from there."
        )
        self.signal_number = signal_number


# What ends a run: the last one is what cluster schedulers send some time before they take a machine away.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@dataclass
class StopRequest:
    """Whether somebody wants the run to end, and the signal that said so."""

    signal_number: int = 0

    def agree(self, signal_number: int) -> bool:
        """Take over what all processes of a run have agreed on, 0 for no signal. Gives whether they all stop now.

        A signal that came meanwhile is kept for the next time.
        """
        self.signal_number = signal_number or self.signal_number
        return signal_number != 0

    @property
    def requested(self) -> bool:
        return self.signal_number != 0

    @property
    def by_hand(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.signal_number == signal.SIGINT


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Notes the first of these signals instead of dying of it.

    After it Ctrl-C acts at once. The others change nothing any more: launchers and schedulers may send them twice.
    """
    request = StopRequest()
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        request.signal_number = request.signal_number or number
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    if threading.current_thread() is threading.main_thread():  # Python hears signals nowhere else
        before.update({number: signal.signal(number, note) for number in SIGNALS})
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
