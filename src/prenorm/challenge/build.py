"""Stage 1: the learner's block, judged as a whole by the checker, and part by part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks.subject.protocol import EndedError
from ..checks.verdict import Finding, Verdict
from .judge import Judge, OpenSubject, paper_judge, sandboxed
from .parts.judging import JUDGES, WRONG, Part, is_written, judge

PARTS = tuple(JUDGES)
BLOCK = "TransformerBlock"


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """The result. Without a verdict, the block is not written yet."""

    parts: tuple[Part, ...]
    verdict: Verdict | None

    @property
    def passed(self) -> bool:
        """Whether the block has no fault, and no written part is wrong."""
        parts_pass = all(part.is_right or part.is_missing for part in self.parts)
        return parts_pass and self.verdict is not None and self.verdict.passed

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "passed": self.passed,
            "parts": [{"name": part.name, "state": part.state, "reason": part.reason} for part in self.parts],
            "block": None if self.verdict is None else self.verdict.to_json(),
        }


def build(layers: Path, *, judge_whole: Judge | None = None, open_subject: OpenSubject | None = None) -> Build:
    """Judge every part of a file, and its block."""
    parts = judge_parts(layers, PARTS, open_subject=open_subject)
    with (open_subject or sandboxed)(layers.parent) as subject:
        if not is_written(BLOCK, layers, subject, d_model=8, num_heads=2, d_ff=16):
            return Build(parts=parts, verdict=None)
    return Build(parts=parts, verdict=(judge_whole or paper_judge)(f"{layers}:{BLOCK}"))


def judge_parts(layers: Path, names: Sequence[str], *, open_subject: OpenSubject | None = None) -> tuple[Part, ...]:
    """Judge parts of a file, in one process, or in another one after each part that ends it."""
    parts: list[Part] = []
    while len(parts) < len(names):
        with (open_subject or sandboxed)(layers.parent) as subject:
            try:
                parts.extend(judge(name, layers, subject) for name in names[len(parts) :])
            except EndedError as ended:
                parts.append(Part(name=names[len(parts)], state=WRONG, reason=f"it ended its process: {ended}."))
    return tuple(parts)


def judge_block(layers: Path, *, judge_whole: Judge | None = None) -> list[str]:
    """What is wrong with the block of a file, in words; empty if it is correct."""
    return [told(finding) for finding in (judge_whole or paper_judge)(f"{layers}:{BLOCK}").findings]


def told(finding: Finding) -> str:
    """A finding as a few lines of text."""
    place = f"\n  see line {finding.place.line}: {finding.place.code}" if finding.place else ""
    return f"{finding.id}: {finding.message}\n  {finding.evidence}\n  fix: {finding.mend}{place}"
