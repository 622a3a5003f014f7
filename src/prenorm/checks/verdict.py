"""The verdict: findings (faults and choices, by id), conventions, and what was checked."""

from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"
INTERNAL_ERROR = "internal_error"
NOT_JUDGED = 2
"""The exit code of a verdict on what could not be judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where in the learner's code a fault most likely is: a guess, read from the source without running it."""

    file: str
    line: int
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One fault: its id (a name of checks/faults.py), what it means, its evidence, and how to fix it.

    counts: whether the block fails for it. What published models do on purpose counts only under a target that
    excludes it.
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
    """One check: its name, passed | failed | not applicable, and the reason in plain words."""

    name: str
    result: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The whole verdict. A block passes if it was judged and no finding counts.

    judged: whether its numbers were explained; a block that could not be judged does not pass.
    """

    subject: str
    findings: tuple[Finding, ...] = ()
    conventions: dict[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    build: str = ""  # the line that built it
    call: str = ""  # and the one that called it
    confinement: tuple[str, ...] = ()  # what confined the learner's code, one line each
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
        """0: no fault. 1: faults. 2: it could not be judged, or the checker itself failed."""
        if INTERNAL_ERROR in self.ids or not (self.faults or self.judged):
            return NOT_JUDGED
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
