"""What the checker says: findings (faults, by id), conventions (nobody's fault), and what was checked."""

from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where in the learner's code a fault most likely sits: a guess, read from the source without running it."""

    file: str
    line: int
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One fault: its id (a name of checks/faults.py), what it means, what showed it, and how to mend it."""

    id: str
    message: str
    evidence: str
    mend: str
    place: Place | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for --json; "where" is None where no line of the source stood out."""
        place = self.place
        where = None if place is None else {"file": place.file, "line": place.line, "code": place.code}
        return {"id": self.id, "message": self.message, "evidence": self.evidence, "mend": self.mend, "where": where}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at: its name, passed | failed | not applicable, and the reason in plain words."""

    name: str
    result: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """All of it. A block passes when nothing was found."""

    subject: str
    findings: tuple[Finding, ...] = ()
    conventions: dict[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    build: str = ""  # the line that built it
    call: str = ""  # and the one that called it
    confinement: tuple[str, ...] = ()  # what held the learner's code, one line each
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether no fault was found."""
        return not self.findings

    @property
    def ids(self) -> list[str]:
        """The ids of the findings, in the order they were found."""
        return [finding.id for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "subject": self.subject,
            "passed": self.passed,
            "findings": [finding.to_json() for finding in self.findings],
            "build": self.build,
            "call": self.call,
            "conventions": self.conventions,
            "checks": [{"name": one.name, "result": one.result, "reason": one.reason} for one in self.checks],
            "confinement": list(self.confinement),
            "seconds": round(self.seconds, 2),
        }
