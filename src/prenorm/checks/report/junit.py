"""Verdicts as JUnit XML, which GitLab, Jenkins, GitHub's report actions and most other CI readers show as tests."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from ..verdict import FAILED, NOT_APPLICABLE, NOT_JUDGED, Check, Finding, Verdict

# Everything but what XML 1.0 can hold: a learner's error message may have anything in it.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(verdicts: Sequence[Verdict], problems: Mapping[str, str] | None = None) -> str:
    """One testsuite per verdict: a testcase for every check, and one for every finding, which fails if it counts.

    problems: subjects that were not judged, with the reason; each is a testsuite with one error. In a verdict of what
    could not be judged, all that would fail is an error, too. A check that is not applicable is skipped. Times are
    seconds.
    """
    suites = ET.Element("testsuites", name="prenorm check")
    for verdict in verdicts:
        suites.append(_suite(verdict))
    for subject, reason in (problems or {}).items():
        suite = _element(suites, "testsuite", name=subject, tests="1", failures="0", errors="1", skipped="0", time="0")
        _add_problem(suite, subject, reason)
    for name in ("tests", "failures", "errors", "skipped"):
        suites.set(name, str(sum(int(suite.get(name, 0)) for suite in suites)))
    suites.set("time", f"{sum(verdict.seconds for verdict in verdicts):.3f}")
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _suite(verdict: Verdict) -> ET.Element:
    failed = sum(one.result == FAILED for one in verdict.checks) + len(verdict.faults)
    unjudged = verdict.exit_code == NOT_JUDGED
    fails = "error" if unjudged else "failure"
    counts = {
        "tests": len(verdict.checks) + len(verdict.findings) + unjudged,
        "failures": 0 if unjudged else failed,
        "errors": failed + 1 if unjudged else 0,
        "skipped": sum(one.result == NOT_APPLICABLE for one in verdict.checks),
    }
    suite = ET.Element("testsuite", name=_clean(verdict.subject), time=f"{verdict.seconds:.3f}")
    for name, count in counts.items():
        suite.set(name, str(count))
    if verdict.conventions:
        properties = _element(suite, "properties")
        for name, value in verdict.conventions.items():
            _element(properties, "property", name=name, value=str(value))
    for check in verdict.checks:
        _add_check(suite, verdict.subject, check, fails)
    for finding in verdict.findings:
        _add_finding(suite, verdict.subject, finding, fails)
    if unjudged:
        _add_problem(suite, verdict.subject, next((one.evidence for one in verdict.findings), "nothing explains it"))
    return suite


def _add_problem(suite: ET.Element, subject: str, reason: str) -> None:
    case = _element(suite, "testcase", classname=subject, name="can be judged", time="0")
    _element(case, "error", message=reason, type="problem")


def _add_check(suite: ET.Element, subject: str, check: Check, fails: str) -> None:
    case = _element(suite, "testcase", classname=f"{subject} checks", name=check.name, time="0")
    if check.result == FAILED:
        _element(case, fails, message=check.reason, type="check").text = _clean(check.reason)
    elif check.result == NOT_APPLICABLE:
        _element(case, "skipped", message=check.reason)


def _add_finding(suite: ET.Element, subject: str, finding: Finding, fails: str) -> None:
    case = _element(suite, "testcase", classname=f"{subject} findings", name=finding.id, time="0")
    lines = [finding.evidence, f"fix: {finding.mend}"]
    if (place := finding.place) is not None:
        case.set("file", _clean(place.file))
        case.set("line", str(place.line))
        lines.append(f"{place.file}:{place.line}: {place.code}")
    if finding.counts:
        _element(case, fails, message=finding.message, type=finding.id).text = _clean("\n".join(lines))
    else:
        _element(case, "system-out").text = _clean("\n".join([finding.message, *lines]))


def _element(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, {name: _clean(value) for name, value in attributes.items()})


def _clean(text: str) -> str:
    """Without the characters that no XML document may hold."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
