import json
from random import Random

import pytest

from prenorm.challenge import harden
from prenorm.challenge.planters.code import Code
from prenorm.challenge.planters.table import PLANTERS
from prenorm.challenge.progress import Progress, save
from prenorm.checks.faults import FAULTS
from prenorm.checks.verdict import Finding, Place, Verdict
from prenorm.errors import ConfigError

from .conftest import SOLUTIONS
from .fake import judge_numbers

TEXT = (SOLUTIONS / "plain.py").read_text()


def found(*ids):
    return Verdict(subject="x", findings=tuple(Finding(id=id, message="m", evidence="e", mend="w") for id in ids))


def test_seeds_plant_different_faults_that_the_judge_finds():
    faults = set()
    for seed in range(6):
        fault, text = harden.plant(TEXT, Random(seed), judge_numbers)
        assert harden.plant(TEXT, Random(seed), judge_numbers) == (fault, text)
        assert text != TEXT
        faults.add(fault)
    assert len(faults) > 2


def test_a_fault_under_its_own_name_is_preferred():
    verdicts = iter([found("unexplained"), found("token_positions_ignored")])
    tried = []

    def judge(subject):
        tried.append(subject)
        return next(verdicts)

    assert harden.plant_one(Code(TEXT), "token_positions_ignored", judge) is not None
    assert len(tried) == 2


def test_what_crashes_or_passes_is_not_planted():
    assert harden.plant_one(Code(TEXT), "no_norm", lambda subject: found("forward_error")) is None
    assert harden.plant_one(Code(TEXT), "no_norm", lambda subject: found("no_norm", "forward_error")) is not None
    with pytest.raises(ConfigError, match="no fault could be planted"):
        harden.plant(TEXT, Random(0), lambda subject: found())


def test_a_file_that_is_no_python_is_refused():
    with pytest.raises(ConfigError, match=r"layers.py cannot be parsed \(line 2"):
        harden.plant("x = 1\ny =\n", Random(0), judge_numbers)


def test_no_file_says_which_fault_it_is(tmp_path):
    file = tmp_path / "layers.py"
    file.write_text("x")
    for fault in PLANTERS:
        planted = harden.seal(file, fault)
        save(Progress(planted=planted), tmp_path / "challenge.json")
        text = (tmp_path / "challenge.json").read_text()
        assert not [name for name in FAULTS if name in text]
        assert harden.revealed(planted) == fault
        assert json.loads(text)["planted"]["fault"] != json.loads(text)["planted"]["sha256"]


def test_hints_grow_with_failed_attempts():
    place = Place(file="layers.py", line=7, code="x = y")
    finding = Finding(id="a", message="what it means", evidence="what was seen", mend="what to do", place=place)
    verdict = Verdict(subject="x", findings=(finding,))
    assert harden.hint(verdict, 1) == "The checker saw: what was seen\n(The next failed attempt shows more.)"
    assert "what it means" in harden.hint(verdict, 2)
    assert "what to do" not in harden.hint(verdict, 2)
    assert harden.hint(verdict, 9).endswith("Look at line 7: x = y")
