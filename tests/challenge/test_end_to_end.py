"""The challenge with the checker itself, in its sandbox, as a learner meets it."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from prenorm.challenge import harden
from prenorm.challenge.judge import paper_judge
from prenorm.challenge.planters.code import Code
from prenorm.challenge.planters.table import PLANTERS
from prenorm.challenge.progress import load

from .conftest import SOLUTIONS
from .test_justify import right_answers
from .test_planters import NO_PLACE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("prenorm.checks.check") is None, reason="there is no checker in this version"
)
all_checks = pytest.mark.skipif(not os.environ.get("PRENORM_ALL_CHECKS"), reason="PRENORM_ALL_CHECKS=1 runs it")


def prenorm(*argv):
    result = subprocess.run([sys.executable, "-m", "prenorm", "challenge", *argv], capture_output=True, text=True)
    assert result.stderr == ""
    return result.returncode, result.stdout


def test_a_learner_gets_from_an_empty_folder_to_the_end(tmp_path):
    folder = tmp_path / "mine"
    assert prenorm("new", str(folder))[0] == 0
    layers, planted = folder / "cs336_basics" / "layers.py", folder / "harden" / "layers.py"
    code, out = prenorm("submit", str(folder))
    assert (code, "TransformerBlock not written yet" in out) == (1, True)

    layers.write_text((SOLUTIONS / "terse.py").read_text())
    code, out = prenorm("submit", str(folder), "--json", "--seed", "1")
    assert (code, json.loads(out)["stage"]) == (0, "justify"), out

    answers = folder / "answers.json"
    answers.write_text(json.dumps(right_answers(load(folder / "challenge.json"))))
    code, out = prenorm("submit", str(folder), "--json", "--seed", "1", "--answers", str(answers))
    assert (code, json.loads(out)["stage"]) == (0, "harden"), out
    assert planted.read_text() != layers.read_text()

    planted.write_text(f"# nothing found\n{planted.read_text()}")
    code, out = prenorm("submit", str(folder))
    assert (code, "The checker saw: " in out) == (1, True)

    planted.write_text(layers.read_text())
    code, out = prenorm("submit", str(folder))
    assert code == 0, out
    assert "Found and mended. It was " in out


def test_the_workspaces_own_tests_say_what_is_wrong(solved):
    def pytest_there():
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
        result = subprocess.run(argv, cwd=solved.folder, capture_output=True, text=True)
        return result.returncode, result.stdout

    code, out = pytest_there()
    assert code == 0, out
    assert "6 passed" in out
    text = solved.layers.read_text()
    solved.layers.write_text(text.replace("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)"))
    code, out = pytest_there()
    assert code == 1
    assert "softmax_wrong_dim" in out
    assert "2 failed, 4 passed" in out


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


@all_checks
@pytest.mark.parametrize("solution", NO_PLACE)
@pytest.mark.parametrize("fault", PLANTERS)
def test_the_checker_finds_every_planted_fault(fault, solution):
    code = Code((SOLUTIONS / f"{solution}.py").read_text())
    planted = harden.plant_one(code, fault, paper_judge)
    assert (planted is None) == (fault in NO_PLACE[solution])
