"""The challenge with the checker itself, in its sandbox, as a learner meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prenorm
from prenorm.challenge import harden
from prenorm.challenge.judge import paper_judge
from prenorm.challenge.planters.code import Code
from prenorm.challenge.planters.table import PLANTERS
from prenorm.challenge.progress import load
from prenorm.cli.main import main

from .conftest import SOLUTIONS
from .planters.test_planters import NO_PLACE
from .test_justify import right_answers

FAULTS = list(PLANTERS) if os.environ.get("PRENORM_ALL_CHECKS") else []  # some four minutes


def test_a_learner_gets_from_an_empty_folder_to_the_end(tmp_path, capsys):
    def challenge(*argv):
        return main(["challenge", *argv]), capsys.readouterr().out

    folder = tmp_path / "mine"
    assert challenge("new", str(folder))[0] == 0
    layers, planted = folder / "cs336_basics" / "layers.py", folder / "harden" / "layers.py"
    code, out = challenge("submit", str(folder))
    assert (code, "TransformerBlock not written yet" in out) == (1, True)

    layers.write_text((SOLUTIONS / "terse.py").read_text())
    code, out = challenge("submit", str(folder), "--json", "--seed", "1")
    assert (code, json.loads(out)["stage"]) == (0, "justify"), out

    answers = folder / "answers.json"
    answers.write_text(json.dumps(right_answers(load(folder / "challenge.json"))))
    code, out = challenge("submit", str(folder), "--json", "--seed", "1", "--answers", str(answers))
    assert (code, json.loads(out)["stage"]) == (0, "harden"), out
    assert planted.read_text() != layers.read_text()

    planted.write_text(f"# nothing found\n{planted.read_text()}")
    code, out = challenge("submit", str(folder))
    assert (code, "The checker saw: " in out) == (1, True)

    planted.write_text(layers.read_text())
    code, out = challenge("submit", str(folder))
    assert code == 0, out
    assert "Found and mended. It was " in out


@pytest.mark.long
def test_the_workspaces_own_tests_say_what_is_wrong(solved):
    environment = {**os.environ, "PYTHONPATH": str(Path(prenorm.__file__).parent.parent)}

    def pytest_there(*tests):
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        result = subprocess.run(argv, cwd=solved.folder, capture_output=True, text=True, env=environment)
        return result.returncode, result.stdout

    code, out = pytest_there()
    assert code == 0, out
    assert "6 passed" in out
    text = solved.layers.read_text()
    solved.layers.write_text(text.replace("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)"))
    code, out = pytest_there("tests/test_model.py::test_transformer_block")
    assert code == 1
    assert "softmax_wrong_dim" in out
    assert "1 failed" in out


@pytest.mark.long
def test_a_part_that_never_ends_is_told_and_the_others_go_on(solved, monkeypatch):
    from prenorm.challenge import judge
    from prenorm.challenge.build import judge_parts

    monkeypatch.setattr(judge, "SECONDS", 5.0)
    text = solved.layers.read_text()
    solved.layers.write_text(text.replace("rms = torch.sqrt", "while True: pass\n        rms = torch.sqrt"))
    norm, rope = judge_parts(solved.layers, ["RMSNorm", "RotaryEmbedding"])
    assert norm.state == "wrong"
    assert "timeout" in norm.reason
    assert rope.is_right


@pytest.mark.parametrize(("fault", "solution"), [(fault, solution) for fault in FAULTS for solution in NO_PLACE])
def test_the_checker_finds_every_planted_fault(fault, solution):
    code = Code((SOLUTIONS / f"{solution}.py").read_text())
    planted = harden.plant_one(code, fault, paper_judge)
    assert (planted is None) == (fault in NO_PLACE[solution])
