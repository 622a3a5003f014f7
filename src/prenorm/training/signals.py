"""Ctrl-C and SIGTERM: the step is finished and a checkpoint is written before a run ends."""

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


@dataclass
class StopRequest:
    """Whether somebody wants the run to end, and the signal that said so."""

    signal_number: int = 0

    @property
    def requested(self) -> bool:
        return self.signal_number != 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Notes the first SIGINT or SIGTERM instead of dying of it; a second one acts at once."""
    request = StopRequest()
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        request.signal_number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():  # Python hears signals nowhere else
        before.update({number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
