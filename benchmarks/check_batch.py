"""How long `prenorm check --batch` takes for the submissions of a course: `make bench-check`.

Submissions are blocks of the tests' corpus, faulty and correct ones, always the same. The command runs as a user runs
it. Its seconds are divided by those of the single checks, which shows how many run at a time. --cpu counts the seconds
of the processor instead, one check after the other in this process, beyond imports: other work on the machine does not
change them much.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import describe, refuse_while_busy

from prenorm.checks.judge import judge
from prenorm.checks.source.code import locate
from prenorm.checks.subject.local import LocalSubject

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.checks.corpus.strangers import blocks

CLASS = "TransformerBlock"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=60)
    parser.add_argument("--cpu", action="store_true", help="count the processor's seconds")
    parser.add_argument("--anyway", action="store_true", help="on a busy machine, too: the numbers then say little")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hand_in(folder, options.submissions)
        if options.cpu:
            seconds = [cpu_seconds(file) for file in sorted(folder.glob("*/layers.py"))]
            print_seconds(seconds, "of the processor")
            return
        if not options.anyway:
            refuse_while_busy()
        start = time.perf_counter()
        command = [sys.executable, "-m", "prenorm", "check", f"layers.py:{CLASS}", "--batch", name, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - start
        seconds = [one["seconds"] for one in json.loads(done.stdout)]
        print_seconds(seconds, "of the clock")
        print(f"all {len(seconds)} in {wall:.0f} s; {sum(seconds) / wall:.2f} at a time; {describe()}")


def hand_in(folder: Path, count: int) -> None:
    """Write submissions, each in a folder."""
    examples = [one for one in (*blocks.faulty(), *blocks.right()) if one.attribute == CLASS and one.call is None]
    for number, one in enumerate(random.Random(0).sample(examples, count)):
        (folder / f"student{number:02}").mkdir()
        (folder / f"student{number:02}" / "layers.py").write_text(one.source)


def cpu_seconds(file: Path) -> float:
    """The processor's seconds for one check in this process."""
    torch.set_num_threads(1)
    sys.modules.pop("layers", None)
    path, start = list(sys.path), time.process_time()
    judge(LocalSubject(), locate(f"{file}:{CLASS}"), seed=0)
    sys.path[:] = path
    return time.process_time() - start


def print_seconds(seconds: list[float], which: str) -> None:
    """Print the median, the largest, and how many are over ten."""
    late = sum(one > 10 for one in seconds)
    middle = statistics.median(seconds)
    print(f"seconds {which} for a check: median {middle:.1f}, largest {max(seconds):.1f}, {late} over 10")


if __name__ == "__main__":
    main()
