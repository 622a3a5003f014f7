"""A verdict as the results.json of a Gradescope autograder.

A block without faults gets all points, each fault takes a quarter of them, and a block that cannot be run, or whose
numbers nobody could judge, gets none. What is named and does not count costs nothing.
How many checks passed does not count: a block without its residual passes most of them.
Format: https://gradescope-autograders.readthedocs.io/en/latest/specs/
"""

from typing import Any

from ..verdict import FAILED, NOT_APPLICABLE, Finding, Verdict

FAULT_COST = 0.25
ENDS = frozenset({"timeout", "internal_error"})
"""What ends a judgement; an error of one call among others costs what every fault does."""


def gradescope(
    verdict: Verdict, *, max_score: float = 100.0, fault_cost: float = FAULT_COST, visibility: str = "visible"
) -> dict[str, Any]:
    """What results.json holds.

    fault_cost: the share of the points that each fault takes; 1 means all points or none.
    visibility: "visible", "hidden", "after_due_date" or "after_published", for the tests. What the learner's code
    printed is never shown.
    """
    tests = [_finding(finding, verdict.judged) for finding in verdict.findings]
    tests += [
        {"name": check.name, "status": "failed" if check.result == FAILED else "passed", "output": check.reason}
        for check in verdict.checks
        if check.result != NOT_APPLICABLE
    ]
    return {
        "score": round(max_score * share(verdict, fault_cost), 2),
        "max_score": max_score,
        "execution_time": round(verdict.seconds),
        "output": _summary(verdict),
        "stdout_visibility": "hidden",
        "tests": [{**test, "visibility": visibility} for test in tests],
        "extra_data": verdict.to_json(),
    }


def gradescope_problem(reason: str, *, max_score: float = 100.0) -> dict[str, Any]:
    """The results.json if there was nothing to judge: no file, no class."""
    return {"score": 0.0, "max_score": max_score, "output": reason, "tests": []}


def share(verdict: Verdict, fault_cost: float = FAULT_COST) -> float:
    """The share of the points, from 0 to 1."""
    if not verdict.judged or ENDS.intersection(verdict.ids):  # it is unknown whether its numbers are correct
        return 0.0
    return max(0.0, 1.0 - fault_cost * len(verdict.faults))


def _finding(finding: Finding, judged: bool) -> dict[str, Any]:
    place = f"\nLine {finding.place.line}: {finding.place.code}" if finding.place is not None else ""
    output = f"{finding.message}\n{finding.evidence}\nFix: {finding.mend}{place}"
    costs = "It costs no points.\n" if judged else ""
    if not finding.counts:
        return {"name": f"named: {finding.id}", "status": "passed", "output": costs + output}
    return {"name": f"fault: {finding.id}", "status": "failed", "output": output}


def _summary(verdict: Verdict) -> str:
    if verdict.passed:
        return "No fault was found."
    faults = [finding.id for finding in verdict.faults]
    counted = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}{': ' if faults else ''}{', '.join(faults)}."
    unjudged = "Its numbers could not be judged; a person has to look at it." if not verdict.judged else ""
    return " ".join(filter(None, [counted if faults or verdict.judged else "", unjudged]))
