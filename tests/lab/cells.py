"""Cells whose measurements are known, for the tests of sweeps and folders."""

import os
import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Square:
    """A number squared."""

    number: int
    cost: float = 1.0

    def measure(self):
        return {"square": self.number**2, "process": os.getpid()}


@dataclass(frozen=True, kw_only=True)
class Failing:
    """What cannot be measured: its code raises, or its process ends."""

    kind: str
    cost: float = 1.0

    def measure(self):
        if self.kind == "raises":
            raise ValueError("no such thing")
        os._exit(7)


@dataclass(frozen=True, kw_only=True)
class Endless:
    """What takes longer than anybody waits."""

    cost: float = 0.5

    def measure(self):
        time.sleep(60)
        return {}
