"""The machine that a benchmark runs on: what it is, whether it is free, and where its figures go."""

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prenorm.kernels.cpu import native, processor

BUSY = 0.15  # of the processors' time, before anything of ours runs
RESULTS = Path(__file__).parent / "results"


def describe() -> str:
    """Processor, threads and PyTorch's version, in one line."""
    vendor, family = processor.processor()
    return f"{vendor} family {family}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def microarchitecture() -> str:
    """The processor's design, as it is called; its vendor and family where that is not known here."""
    vendor, family = processor.processor()
    if vendor == processor.AMD and family == processor.ZEN_5:
        return "Zen 5"
    if vendor == processor.AMD and family == processor.ZEN_3:
        return "Zen 4" if "avx512f" in processor.features() else "Zen 3"
    return f"{vendor} family {family}"


def add_json_options(parser: argparse.ArgumentParser) -> None:
    """--json and --keep."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--keep", action="store_true", help="write them into benchmarks/results too")


def write_numbers(options: argparse.Namespace, benchmark: str, *packages: str, **numbers: Any) -> None:
    """Write what was measured, with the machine, the date and the versions, where the options say.

    packages: the peers' names, as pip has them.
    """
    found = {
        "benchmark": benchmark,
        "date": datetime.date.today().isoformat(),
        "processor": microarchitecture(),
        "kernels": native.load().which or native.unavailable_reason(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", *packages)},
        **numbers,
    }
    held_to = ["avx2"] if os.environ.get("PRENORM_ISA") == "x86-64-v3" else []
    kept = RESULTS / f"{'-'.join([benchmark, microarchitecture().replace(' ', '').lower(), *held_to])}.json"
    for file in [options.json, kept if options.keep else None]:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")


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
