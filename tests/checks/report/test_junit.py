import dataclasses
import xml.etree.ElementTree as ET

from prenorm.checks.report.junit import junit
from prenorm.checks.verdict import Finding, Verdict

from .examples import BAD, GOOD

CHOICE = Finding(id="import_error", message="m", evidence="no download here", mend="w", counts=False)


def test_checks_and_findings_are_testcases():
    root = ET.fromstring(junit([GOOD, BAD]).encode())
    assert root.tag == "testsuites"
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "7",
        "failures": "3",
        "errors": "0",
        "skipped": "1",
        "time": "3.500",
    }
    good, bad = root
    assert [case.get("name") for case in good.iter("testcase")] == ["values", "mask"]
    assert [case.get("name") for case in bad.iter("testcase")] == [
        "values",
        "shapes",
        "dtype",
        "post_norm",
        "eps_ignored",
    ]
    assert good.find("properties/property").attrib == {"name": "causal", "value": "False"}
    assert good.find("testcase/skipped").get("message") == "forward takes none"


def test_every_suite_counts_what_it_holds():
    for suite in ET.fromstring(junit([GOOD, BAD], {"c": "no file"}).encode()):
        cases = list(suite.iter("testcase"))
        assert int(suite.get("tests")) == len(cases)
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(name)) == len(list(suite.iter(tag)))


def test_a_finding_has_its_place_and_its_way_out():
    root = ET.fromstring(junit([BAD]).encode())
    (case,) = [case for case in root.iter("testcase") if case.get("name") == "post_norm"]
    assert (case.get("file"), case.get("line")) == ("b/layers.py", "7")
    failure = case.find("failure")
    assert failure.get("message") == "the norms stand on the <residual> path"
    assert failure.text.endswith("1 & more\nfix: x + f(norm(x))\nb/layers.py:7: x = norm(x + f(x))")


def test_characters_that_xml_cannot_hold_are_replaced():
    text = junit([BAD])
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "\ufffd[31mrms\ufffd 1" in text


def test_a_problem_is_an_error():
    root = ET.fromstring(junit([], {"c": "it has no layers.py"}).encode())
    assert (root.get("errors"), root.get("tests")) == ("1", "1")
    assert root.find("testsuite/testcase/error").get("message") == "it has no layers.py"
    assert junit([]).startswith('<?xml version="1.0" encoding="utf-8"?>\n')


def test_what_does_not_count_is_no_failure():
    choice = Finding(id="layer_norm", message="m", evidence="e", mend="w", counts=False)
    suite = ET.fromstring(junit([Verdict(subject="s", findings=(choice,))]).encode())[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")


def test_what_could_not_be_judged_is_an_error_and_no_failure():
    root = ET.fromstring(junit([dataclasses.replace(BAD, findings=(CHOICE,), judged=False)]).encode())
    assert (root.get("failures"), root.get("errors"), root.get("tests")) == ("0", "2", "5")
    assert root.find(".//failure") is None
    assert [one.get("message") for one in root.iter("error")] == ["they differ", "no download here"]
    assert int(root.get("errors")) == len(list(root.iter("error")))
    assert int(root.get("tests")) == len(list(root.iter("testcase")))
