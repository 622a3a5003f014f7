"""How good the checker is: `python -m tests.checks.measure` judges every block of the corpus, each in a sandbox.

It prints what was caught, what was named right and every false alarm, and how long it took. --matrix FILE writes the
table of faults and checks into a page of the docs, between its two marks. --local judges in this process, which is
quicker.
"""

import argparse
import collections
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from prenorm.checks.check import check
from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import FAILED, Verdict

from .corpus import Example, faulty, right
from .corpus.strangers import blocks as strangers

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
    path = list(sys.path)
    try:
        code = Code(root=str(file.parent), module="learner", file=str(file), name=example.attribute)
        lines = {"build": example.build, "call": example.call}
        return judge(LocalSubject(), code, target=example.target, seed=seed, **lines)
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
    parser.add_argument("--every", type=int, default=1, help="only every k-th block")
    parser.add_argument("--only", default="", help="only blocks with this in their name")
    parser.add_argument("--matrix", type=Path, help="a page of the docs")
    parser.add_argument("--json", type=Path, help="write every result here")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    examples = [*strangers.right(), *strangers.faulty()] if options.strangers else right() + faulty()
    chosen = [one for one in examples if options.only in one.name][:: options.every]
    if options.local:
        chosen = [one for one in chosen if "timeout" not in one.faults]
    results = []
    begin = time.monotonic()
    for one in all_judged(chosen, local=options.local, workers=options.workers):
        results.append(one)
        if not one.named or (not one.faults and one.caught):
            print(
                f"{one.name}: has {sorted(one.faults) or 'no fault'}, found {sorted(one.ids) or 'nothing'}", flush=True
            )
        elif one.beside:
            print(f"{one.name}: beside it, {sorted(one.beside)}", flush=True)
    good = _summary(results, time.monotonic() - begin)
    if options.matrix is not None:
        text = options.matrix.read_text()
        before, _, rest = text.partition(MARKS[0])
        options.matrix.write_text(before + MARKS[0] + matrix(results) + MARKS[1] + rest.partition(MARKS[1])[2])
    if options.json is not None:
        options.json.write_text(json.dumps([_as_json(one) for one in results], indent=1))
    return 0 if good else 1


def _summary(results: Sequence[Judged], seconds: float) -> bool:
    wrong, clean = [one for one in results if one.faults], [one for one in results if not one.faults]
    if not wrong or not clean:
        print("only blocks of one kind: no figures")
        return not any(one.caught for one in clean)
    caught, named = sum(one.caught for one in wrong), sum(one.named for one in wrong)
    alarms, beside = sum(one.caught for one in clean), sum(bool(one.beside) for one in wrong)
    slow = [one.name for one in results if one.seconds > SLOW]
    times = sorted(one.seconds for one in results)
    print(f"{len(wrong)} faulty blocks: {caught / len(wrong):.1%} caught, {named / len(wrong):.1%} named right")
    print(f"{beside} of them got a second name that is not theirs")
    print(f"{len(clean)} right blocks: {alarms} false alarms")
    print(
        f"median {times[len(times) // 2]:.1f} s a block, slowest {times[-1]:.1f} s; over {SLOW:g} s: {slow or 'none'}"
    )
    print(f"all of it in {seconds:.0f} s")
    return caught >= 0.99 * len(wrong) and named >= 0.95 * len(wrong) and not alarms


def _as_json(one: Judged) -> dict[str, object]:
    return {
        "name": one.name,
        "faults": sorted(one.faults),
        "ids": list(one.ids),
        "beside": sorted(one.beside),
        "failed_checks": list(one.failed_checks),
        "seconds": round(one.seconds, 2),
    }


if __name__ == "__main__":
    raise SystemExit(main())
