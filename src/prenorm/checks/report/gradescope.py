"""A verdict as the results.json of a Gradescope autograder.

The score is max_score times the share of applicable checks that passed; every finding that no failed check accounts for
takes one more share. So a block without findings gets all points, and none that has a finding does.
Format: https://gradescope-autograders.readthedocs.io/en/latest/specs/
"""

from typing import Any

from ..verdict import FAILED, NOT_APPLICABLE, PASSED, Finding, Verdict


def gradescope(
    verdict: Verdict, *, max_score: float = 100.0, partial: bool = True, visibility: str = "visible"
) -> dict[str, Any]:
    """What results.json holds. With partial=False a block gets all points or none.

    visibility: "visible", "hidden", "after_due_date" or "after_published", for the tests. What the learner's code
    printed is never shown.
    """
    tests = [_finding(finding) for finding in verdict.findings]
    tests += [
        {"name": check.name, "status": "failed" if check.result == FAILED else "passed", "output": check.reason}
        for check in verdict.checks
        if check.result != NOT_APPLICABLE
    ]
    return {
        "score": round(max_score * share(verdict, partial=partial), 2),
        "max_score": max_score,
        "execution_time": round(verdict.seconds),
        "output": _summary(verdict),
        "stdout_visibility": "hidden",
        "tests": [{**test, "visibility": visibility} for test in tests],
        "extra_data": verdict.to_json(),
    }


def gradescope_problem(reason: str, *, max_score: float = 100.0) -> dict[str, Any]:
    """What results.json holds where there was nothing to judge: no file, no class."""
    return {"score": 0.0, "max_score": max_score, "output": reason, "tests": []}


def share(verdict: Verdict, *, partial: bool = True) -> float:
    """The share of the points, from 0 to 1."""
    if verdict.passed:
        return 1.0
    passed = sum(check.result == PASSED for check in verdict.checks)
    failed = sum(check.result == FAILED for check in verdict.checks)
    return passed / (passed + max(failed, len(verdict.findings))) if partial else 0.0


def _finding(finding: Finding) -> dict[str, Any]:
    place = f"\nLine {finding.place.line}: {finding.place.code}" if finding.place is not None else ""
    output = f"{finding.message}\n{finding.evidence}\nMend it: {finding.mend}{place}"
    return {"name": f"fault: {finding.id}", "status": "failed", "output": output}


def _summary(verdict: Verdict) -> str:
    if verdict.passed:
        return "No fault was found."
    return f"{len(verdict.findings)} fault{'s' if len(verdict.findings) > 1 else ''}: {', '.join(verdict.ids)}."
