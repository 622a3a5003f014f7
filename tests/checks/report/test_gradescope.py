import json

import pytest

from prenorm.checks.report.gradescope import gradescope, gradescope_problem, share
from prenorm.checks.verdict import FAILED, PASSED, Check, Finding, Verdict

from .examples import BAD, GOOD


def test_a_block_without_findings_gets_all_points():
    results = gradescope(GOOD, max_score=20.0)
    assert (results["score"], results["max_score"]) == (20.0, 20.0)
    assert [test["name"] for test in results["tests"]] == ["values"]
    assert results["output"] == "No fault was found."


def test_findings_come_first_with_the_way_to_mend_them():
    results = gradescope(BAD)
    assert results["score"] == 50.0  # 2 faults
    first = results["tests"][0]
    assert (first["name"], first["status"], first["visibility"]) == ("fault: post_norm", "failed", "visible")
    assert first["output"].endswith("Fix: x + f(norm(x))\nLine 7: x = norm(x + f(x))")
    assert results["output"] == "2 faults: post_norm, eps_ignored."
    assert results["stdout_visibility"] == "hidden"
    assert json.loads(json.dumps(results))["extra_data"]["passed"] is False


@pytest.mark.parametrize(
    ("ids", "points"),
    [
        ("", 1.0),
        ("post_norm", 0.75),
        ("post_norm no_norm", 0.5),
        ("a b c d e", 0.0),
        ("timeout", 0.0),
        ("a timeout", 0),
        ("forward_error", 0.75),  # of one call, such as one without positions; it was judged all the same
    ],
)
def test_each_fault_takes_a_quarter_and_a_crash_all(ids, points):
    checks = (Check(name="a", result=PASSED, reason=""), Check(name="b", result=FAILED, reason=""))
    found = tuple(Finding(id=id, message="m", evidence="e", mend="w") for id in ids.split())
    verdict = Verdict(subject="s", checks=checks, findings=found)
    assert share(verdict) == pytest.approx(points)
    assert share(verdict, 1.0) == (0.0 if ids else 1.0)


def test_what_does_not_count_costs_nothing_and_what_nobody_judged_earns_nothing():
    choice = Finding(id="layer_norm", message="m", evidence="e", mend="w", counts=False)
    results = gradescope(Verdict(subject="s", findings=(choice,)))
    assert results["score"] == 100.0
    assert [(test["name"], test["status"]) for test in results["tests"]] == [("named: layer_norm", "passed")]
    unjudged = gradescope(Verdict(subject="s", findings=(choice,), judged=False))
    assert unjudged["score"] == 0.0
    assert not any("costs no points" in test["output"] for test in unjudged["tests"])


def test_what_the_format_asks_for():
    results = gradescope(BAD, visibility="after_due_date")
    assert all(test["visibility"] == "after_due_date" for test in results["tests"])
    assert all(test["status"] in ("passed", "failed") for test in results["tests"])
    assert isinstance(results["execution_time"], int)
    assert gradescope_problem("no file")["score"] == 0.0
