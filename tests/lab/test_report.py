"""The files of a report say what its chapters say, each number in its place."""

import csv
import json
import math
import re

from prenorm.lab.intervals import Claim, Finding, Interval
from prenorm.lab.report import Chapter, Drawing, Report, write_report
from prenorm.page import Table

MEASURED = Interval(0.5, 0.25, 0.75, 3)


def written(folder):
    report = Report(
        name="study",
        title="A study",
        introduction=["What it is about."],
        chapters=[
            Chapter(
                title="A question?",
                text=["An answer."],
                findings=[
                    Finding(Claim("first claim", "its source", 0.0, 2.0), MEASURED),
                    Finding(Claim("second claim", "another", -math.inf, -1.0), MEASURED),
                    Finding(Claim("third claim", "a third", 0.3, math.inf), None),
                ],
                drawing=Drawing(name="lines", draw=lambda axes: axes.plot([1, 2], [3, 4]), alt="A line."),
                table=Table(("name", "number"), [("one", 1.5), ("none", math.nan)]),
            )
        ],
        data={"raw": Table(("a", "b"), [(1, 2), (None, "x,y")])},
    )
    return write_report(report, folder)


def test_the_record_has_claims_measurements_and_verdicts(tmp_path):
    record = written(tmp_path)
    assert record == json.loads((tmp_path / "study.json").read_text())
    first, second, third = record["findings"]
    assert (first["chapter"], first["claim"], first["source"]) == ("A question?", "first claim", "its source")
    assert [one["claimed"] for one in record["findings"]] == [[0.0, 2.0], [None, -1.0], [0.3, None]]
    assert (first["measured"], first["interval"], first["seeds"]) == (0.5, [0.25, 0.75], 3)
    assert (third["measured"], third["interval"], third["seeds"]) == (None, None, 0)
    assert [one["verdict"] for one in (first, second, third)] == ["agrees", "disagrees", "cannot tell"]
    (chapter,) = record["chapters"]
    assert chapter["columns"] == ["name", "number"]
    assert chapter["rows"] == [["one", 1.5], ["none", None]]
    assert chapter["picture"] == "lines.png"


def test_the_page_has_each_claim_beside_what_was_measured(tmp_path):
    written(tmp_path)
    text = (tmp_path / "study.html").read_text()
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert rows[0] == ["claim", "as a number", "measured", "verdict"]
    assert rows[1] == ["first claim", "from 0 to 2", "0.5 [0.25, 0.75]", "agrees"]
    assert rows[2] == ["second claim", "below -1", "0.5 [0.25, 0.75]", "disagrees"]
    assert rows[3] == ["third claim", "above 0.3", "no number came out", "cannot tell"]
    sentence = "Claim: first claim (its source). As a number: from 0 to 2. Measured: 0.5 [0.25, 0.75]. Verdict: agrees."
    assert sentence in text


def test_tables_are_files_too(tmp_path):
    written(tmp_path)
    with (tmp_path / "raw.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "2"], ["", "x,y"]]
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
