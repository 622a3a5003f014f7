"""What the checker says: findings (faults, by id), conventions (nobody's fault), and what was checked."""

from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"
INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where in the learner's code a fault most likely sits: a guess, read from the source without running it."""

    file: str
    line: int
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One fault: its id (a name of checks/faults.py), what it means, what showed it, and how to mend it.

    counts: whether the block is at fault for it. What published models do on purpose is named, and counts under a
    target that fixes it.
    """

    id: str
    message: str
    evidence: str
    mend: str
    place: Place | None = None
    counts: bool = True

    def to_json(self) -> dict[str, Any]:
        """A dictionary for --json; "where" is None where no line of the source stood out."""
        place = self.place
        where = None if place is None else {"file": place.file, "line": place.line, "code": place.code}
        texts = {"id": self.id, "message": self.message, "evidence": self.evidence, "mend": self.mend}
        return {**texts, "where": where, "counts": self.counts}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at: its name, passed | failed | not applicable, and the reason in plain words."""

    name: str
    result: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """All of it. A block passes when nothing was found that counts.

    judged: whether its numbers were compared to the end; a block that nobody could judge has earned nothing.
    """

    subject: str
    findings: tuple[Finding, ...] = ()
    conventions: dict[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    build: str = ""  # the line that built it
    call: str = ""  # and the one that called it
    confinement: tuple[str, ...] = ()  # what held the learner's code, one line each
    seconds: float = 0.0
    judged: bool = True

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that count."""
        return tuple(finding for finding in self.findings if finding.counts)

    @property
    def passed(self) -> bool:
        """Whether it was judged to the end, and no finding counts."""
        return self.judged and not self.faults

    @property
    def exit_code(self) -> int:
        """0: no fault. 1: faults. 2: nobody could judge it, or the checker itself failed."""
        if INTERNAL_ERROR in self.ids or not (self.faults or self.judged):
            return 2
        return int(bool(self.faults))

    @property
    def ids(self) -> list[str]:
        """The ids of the findings, in the order they were found."""
        return [finding.id for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "subject": self.subject,
            "passed": self.passed,
            "judged": self.judged,
            "findings": [finding.to_json() for finding in self.findings],
            "build": self.build,
            "call": self.call,
            "conventions": self.conventions,
            "checks": [{"name": one.name, "result": one.result, "reason": one.reason} for one in self.checks],
            "confinement": list(self.confinement),
            "seconds": round(self.seconds, 2),
        }
