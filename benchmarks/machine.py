"""The machine that a benchmark runs on: what it is, and whether it is free."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from prenorm.kernels.cpu.processor import processor

BUSY = 0.15  # of the processors' time, before anything of ours runs


def describe() -> str:
    """Processor, threads and PyTorch's version, in one line."""
    vendor, family = processor()
    return f"{vendor} family {family}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def refuse_while_busy() -> None:
    """End the program where others use the processors: they would be measured too."""
    if (load := busy()) > BUSY:
        sys.exit(f"other work keeps the processors {load:.0%} busy, and would be measured too: stop it, or try later")


def busy() -> float:
    """The share of the processors' time that others use, over a second; 0 where the system does not say."""

    def times() -> list[int]:
        return [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    try:
        before = times()
        time.sleep(1)
        spent = [b - a for a, b in zip(before, times(), strict=True)]
    except OSError:
        return 0.0
    return 1 - (spent[3] + spent[4]) / sum(spent)


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """Processes that want the cores as well."""
    spin = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # not longer than who started it
    spinning = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
