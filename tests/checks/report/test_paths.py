"""Paths in verdicts of a batch."""

import functools
import json

from prenorm.checks.check import check
from prenorm.checks.report.batch import check_all
from prenorm.checks.report.handed_in import find_submissions
from prenorm.checks.report.paths import inside
from prenorm.checks.verdict import Finding, Place, Verdict

BROKEN = "import torch\n\nraise ValueError(f'no {__file__}')\nclass Block(torch.nn.Module): ...\n"


def test_every_text_of_a_verdict_is_told_from_the_folder_handed_in(tmp_path):
    place = Place(file=f"{tmp_path}/a/model.py (cell 3)", line=1, code="x")
    found = Finding(id="import_error", message="m", evidence=f"{tmp_path}/a.csv is read", mend="", place=place)
    verdict = Verdict(
        subject=f"{tmp_path}/a/model.py:Block", findings=(found,), conventions={"files": [f"{tmp_path}/b"]}
    )
    told = inside(verdict, tmp_path)
    assert str(tmp_path) not in json.dumps(told.to_json())
    assert told.subject == "a/model.py:Block"
    assert told.findings[0].place == Place(file="a/model.py (cell 3)", line=1, code="x")
    assert told.findings[0].evidence == "a.csv is read"


def test_no_row_of_a_batch_has_the_path_of_the_machine_that_judged_it(tmp_path, monkeypatch):
    (tmp_path / "all" / "bob").mkdir(parents=True)
    (tmp_path / "all" / "ann.py").write_text(BROKEN)
    (tmp_path / "all" / "bob" / "model.py").write_text(BROKEN)
    (tmp_path / "all" / "cy.py").write_text("class Other: ...\n")
    monkeypatch.chdir(tmp_path)  # a folder may be given in another way than the child names it
    submissions = find_submissions((tmp_path / "all").relative_to(tmp_path), "model.py:Block")
    results = list(check_all(submissions, functools.partial(check)))
    assert str(tmp_path) not in json.dumps([one.to_json() for one in results])
    found = {one.name: one for one in results}
    assert found["bob"].stopped_by == "ValueError: no model.py"
    assert found["cy.py"].problem == "cy.py:Block: there is no 'Block'; the file defines: Other."
