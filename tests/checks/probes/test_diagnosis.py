"""What is found under one name in two places is said of both."""

from prenorm.checks.formula.spec import Spec
from prenorm.checks.probes.case import Report
from prenorm.checks.probes.diagnosis import faults
from prenorm.checks.search.explanation import Explanation


def test_a_fault_of_both_sublayers_is_said_of_both():
    both = faults(Explanation(Spec(norm1="layer", norm2="layer", residual1="doubled", residual2="doubled"), {}, 2))
    assert both["layer_norm"] == "norm1 subtracts the mean and norm2 subtracts the mean"
    assert both["doubled_residual"].count("added twice") == 2


def test_a_second_evidence_is_added_to_the_first():
    report = Report()
    for norm in ("norm1", "norm2", "norm1"):
        report.found("eps_ignored", f"no eps in {norm}")
    assert report.findings["eps_ignored"] == "no eps in norm1; no eps in norm2"


def test_what_counts_takes_the_place_of_what_does_not():
    report = Report()
    report.found("wrong_dtype", "moved", counts=False, mend="move it")
    report.found("wrong_dtype", "asked for")
    report.found("wrong_dtype", "moved", counts=False)
    assert report.findings == {"wrong_dtype": "asked for"}
    assert report.faults() == {"wrong_dtype"}
    assert not report.mends


def test_an_error_is_said_once():
    report = Report()
    report.found("forward_error", "in training mode it raises ValueError")
    report.found("forward_error", "in the check of eps: ValueError")
    assert report.findings["forward_error"] == "in training mode it raises ValueError"
