"""How good the checker is: `python -m tests.checks.measure` judges every block of the corpus, each in a sandbox.

It prints every wrong verdict, and at the end the table that the docs hold. --keep FILE keeps each result as it comes,
and continues from those in the file; --part 2/5 judges the second fifth. --matrix FILE writes the table of faults and
checks into a page of the docs, between its two marks. --local judges without a sandbox, which is quicker.
"""

import argparse
import collections
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prenorm.checks.check import check
from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import FAILED, Verdict

from .corpus import Example, faulty, right
from .corpus.strangers import blocks as strangers
from .kept import Kept, part, share, table

SLOW = 10.0  # seconds a block may take, without importing what the learner imports
ENDLESS = 3.0  # the limit for those that never end
MARKS = ("<!-- matrix -->\n", "<!-- end of matrix -->\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What became of one example."""

    name: str
    faults: frozenset[str]
    also_named: frozenset[str]
    ids: tuple[str, ...]
    counting: tuple[str, ...]  # of those, the ones that count
    failed_checks: tuple[str, ...]
    seconds: float

    @classmethod
    def from_json(cls, name: str, kept: dict[str, Any]) -> "Judged":
        """What to_json gave."""
        found: dict[str, Any] = {one: frozenset(kept[one]) for one in ("faults", "also_named")}
        found |= {one: tuple(kept[one]) for one in ("ids", "counting", "failed_checks")}
        return cls(name=name, seconds=kept["seconds"], **found)

    def to_json(self) -> dict[str, Any]:
        """Everything but the name."""
        sets = {"faults": sorted(self.faults), "also_named": sorted(self.also_named)}
        lists = {"ids": self.ids, "counting": self.counting, "failed_checks": self.failed_checks}
        return {**sets, **lists, "seconds": round(self.seconds, 2)}

    @property
    def caught(self) -> bool:
        """Whether anything was found that counts, or for a block that has a fault, named."""
        return bool(self.ids if self.faults else self.counting)

    @property
    def named(self) -> bool:
        """Whether every fault was found by its name."""
        return self.faults <= set(self.ids)

    @property
    def beside(self) -> set[str]:
        """What was found that is no true description of it."""
        return set(self.counting) - self.faults - self.also_named


def judged(example: Example, *, local: bool, seed: int | None = None) -> Judged:
    """Judge one example; with a seed (and locally) by the same numbers every time."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "learner.py"
        file.write_text(example.source)
        begin = time.monotonic()
        verdict = _judge_here(example, file, seed) if local else _judge_in_sandbox(example, file)
        seconds = time.monotonic() - begin
    return Judged(
        name=example.name,
        faults=example.faults,
        also_named=example.also_named,
        ids=tuple(verdict.ids),
        counting=tuple(one.id for one in verdict.faults),
        failed_checks=tuple(sorted({one.name for one in verdict.checks if one.result == FAILED})),
        seconds=seconds,
    )


def _judge_in_sandbox(example: Example, file: Path) -> Verdict:
    seconds = ENDLESS if "timeout" in example.faults else 60.0
    subject = f"{file}:{example.attribute}"
    return check(subject, target=example.target, seconds=seconds, build=example.build, call=example.call)


def _judge_here(example: Example, file: Path, seed: int | None) -> Verdict:
    sys.modules.pop("learner", None)
    code = Code(root=str(file.parent), module="learner", file=str(file), name=example.attribute)
    with unchanged_path():
        lines = {"build": example.build, "call": example.call}
        return judge(LocalSubject(), code, target=example.target, seed=seed, **lines)


@contextlib.contextmanager
def unchanged_path() -> Iterator[None]:
    """Afterwards sys.path is what it was: a learner's file is imported from its own folder."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path


def all_judged(examples: Sequence[Example], *, local: bool, workers: int, seed: int | None = None) -> Iterator[Judged]:
    """Judge them side by side, in their order."""
    with judging_processes(workers) as pool:
        futures = [pool.submit(judged, example, local=local, seed=seed) for example in examples]
        for future in futures:
            yield future.result()


def judging_processes(workers: int) -> ProcessPoolExecutor:
    """Processes of one thread that judge, spawned: as a user's process is, also where tests instrument this one."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)


def matrix(results: Sequence[Judged]) -> str:
    """A Markdown table: of the blocks with a fault, which checks fail, and how often the fault is named."""
    single = [one for one in results if len(one.faults) == 1]
    names = list(dict.fromkeys(name for one in single for name in one.failed_checks))
    by_fault: dict[str, list[Judged]] = collections.defaultdict(list)
    for one in single:
        by_fault[next(iter(one.faults))].append(one)
    lines = [
        "| fault | blocks | named | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for fault, blocks in by_fault.items():
        cells = []
        for name in names:
            share = sum(name in one.failed_checks for one in blocks) / len(blocks)
            cells.append("" if share == 0 else "x" if share == 1 else f"{share:.0%}")
        named = sum(one.named for one in blocks)
        lines.append(f"| {fault} | {len(blocks)} | {named} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Judge, and print. Exit code 1 when a figure is short of its promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strangers", action="store_true", help="the corpus' second half")
    parser.add_argument("--local", action="store_true", help="no sandbox")
    parser.add_argument("--part", default="1/1", help="2/5: the second of five parts")
    parser.add_argument("--only", default="", help="only blocks with this in their name")
    parser.add_argument("--matrix", type=Path, help="a page of the docs")
    parser.add_argument("--keep", type=Path, help="keep results in this file, and go on from those that it holds")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    examples = [*strangers.right(), *strangers.faulty()] if options.strangers else right() + faulty()
    chosen = part([one for one in examples if options.only in one.name], options.part)
    if options.local:
        chosen = [one for one in chosen if "timeout" not in one.faults]
    kept = Kept(options.keep, "local" if options.local else "sandbox")
    names = {one.name for one in chosen}
    results = [Judged.from_json(name, result) for name, result in kept.results.items() if name in names]
    for one in results:
        _print_wrong(one)
    left = [one for one in chosen if one.name not in kept.results]
    for one in all_judged(left, local=options.local, workers=options.workers):
        kept.add(one.name, one.to_json())
        results.append(one)
        _print_wrong(one)
    flags = [f" --{name}" for name in ("strangers", "local") if getattr(options, name)]
    flags += [f" --part {options.part}"] if options.part != "1/1" else []
    good = _summary(results, "measure" + "".join(flags), options.workers)
    if options.matrix is not None:
        text = options.matrix.read_text()
        before, _, rest = text.partition(MARKS[0])
        options.matrix.write_text(before + MARKS[0] + matrix(results) + MARKS[1] + rest.partition(MARKS[1])[2])
    return 0 if good else 1


def _print_wrong(one: Judged) -> None:
    if not one.named or (not one.faults and one.caught):
        print(f"{one.name}: has {sorted(one.faults) or 'no fault'}, found {sorted(one.ids) or 'nothing'}", flush=True)
    elif one.beside:
        print(f"{one.name}: beside it, {sorted(one.beside)}", flush=True)


def _summary(results: Sequence[Judged], command: str, workers: int) -> bool:
    """Print the table of the docs. Whether the figures are what is promised."""
    wrong, clean = [one for one in results if one.faults], [one for one in results if not one.faults]
    if not wrong or not clean:
        print("only blocks of one kind: no figures")
        return not any(one.caught for one in clean)
    caught, named = sum(one.caught for one in wrong), sum(one.named for one in wrong)
    alarms, beside = sum(one.caught for one in clean), sum(bool(one.beside) for one in wrong)
    slow = [one.name for one in results if one.seconds > SLOW]
    times = sorted(one.seconds for one in results)
    spent = f"median {times[len(times) // 2]:.1f} s, slowest {times[-1]:.1f} s, {len(slow)} over {SLOW:g} s"
    rows = [
        (f"{len(wrong)} faulty blocks", f"{share(caught, len(wrong))} detected, {share(named, len(wrong))} named"),
        (f"{len(clean)} correct blocks", f"{alarms} false alarms"),
        ("blocks with an additional, wrong name", str(beside)),
        (f"seconds for a block, {workers} at a time", spent),
    ]
    print(table(command, rows))
    if slow:
        print(f"over {SLOW:g} s: {', '.join(slow)}")
    return caught >= 0.99 * len(wrong) and named >= 0.95 * len(wrong) and not alarms


if __name__ == "__main__":
    raise SystemExit(main())
