"""What became of each submission of a batch: its verdict, or why it has none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..faults import CRASHES
from ..verdict import NOT_JUDGED, Verdict
from .handed_in import Submission

STOPPED = "not judged: the batch was stopped before"
"""The problem of a submission whose turn did not come."""
OUTCOMES = ("passed", "failed", "problem")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A submission's verdict, or the reason why it has none. note: the submission's; seconds: of the whole check."""

    name: str
    verdict: Verdict | None
    problem: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """passed, failed or problem: one that could not be judged has neither passed nor failed."""
        if self.verdict is None or self.verdict.exit_code == NOT_JUDGED:
            return "problem"
        return "passed" if self.verdict.passed else "failed"

    @property
    def stopped_by(self) -> str:
        """What stopped the judgement: the problem, or what the code raised."""
        if self.verdict is None:
            return self.problem
        stops = {"passed": (), "failed": CRASHES, "problem": self.verdict.ids}[self.outcome]
        return next((one.evidence for one in self.verdict.findings if one.id in stops), "")

    @property
    def faults(self) -> list[str]:
        """The ids of the findings that count."""
        return [] if self.verdict is None else [one.id for one in self.verdict.faults]

    @property
    def others(self) -> list[str]:
        """The ids of the findings that do not count."""
        return [] if self.verdict is None else [one.id for one in self.verdict.findings if not one.counts]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "problem": self.problem,
            "note": self.note,
            "seconds": round(self.seconds, 2),
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }


def without(submission: Submission, problem: str) -> Result:
    """The result of a submission that is not judged."""
    return Result(name=submission.name, verdict=None, problem=problem, note=submission.note)


def in_order(results: Sequence[Result], submissions: Sequence[Submission]) -> list[Result]:
    """Results in the order of their submissions."""
    place = {one.name: number for number, one in enumerate(submissions)}
    return sorted(results, key=lambda result: place[result.name])


def frequencies(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Each fault with the submissions that have it, the most frequent first."""
    return _whose((id, one.name) for one in results for id in one.faults)


def shared_reasons(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """What stopped several submissions, in the same words, with their names."""
    stopped = ((one.stopped_by, one.name) for one in results if one.stopped_by)
    return [(reason, names) for reason, names in _whose(stopped) if len(names) > 1]


def _whose(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    whose: dict[str, list[str]] = {}
    for what, name in pairs:
        whose.setdefault(what, []).append(name)
    return sorted(whose.items(), key=lambda item: (-len(item[1]), item[0]))


def totals(results: Sequence[Result]) -> str:
    """How many passed, failed, and could not be judged."""
    return ", ".join(f"{sum(one.outcome == kind for one in results)} {kind}" for kind in OUTCOMES)
