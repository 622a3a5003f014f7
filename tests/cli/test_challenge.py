import json
import subprocess
import sys

import pytest

from prenorm.challenge.progress import load
from prenorm.cli import challenge
from prenorm.cli.main import main

from ..challenge.conftest import SOLUTIONS, in_process
from ..challenge.test_justify import right_answers, wrong_answers

__all__ = ["in_process"]  # a fixture


@pytest.fixture
def folder(tmp_path, capsys):
    assert main(["challenge", "new", str(tmp_path / "mine")]) == 0
    assert "README.md says what to do" in capsys.readouterr().out
    return tmp_path / "mine"


@pytest.fixture
def solved(folder):
    (folder / "cs336_basics" / "layers.py").write_text((SOLUTIONS / "plain.py").read_text())
    return folder


def answers_file(folder, answers_of):
    file = folder / "answers.json"
    file.write_text(json.dumps(answers_of(load(folder / "challenge.json"))))
    return str(file)


def submit(folder, *argv, capsys):
    code = main(["challenge", "submit", str(folder), *argv])
    return code, capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
def test_a_script_gets_to_the_end_in_four_calls(solved, capsys):
    code, out = submit(solved, "--json", capsys=capsys)
    questions = json.loads(out)["questions"]
    assert (code, len(questions)) == (0, 6)
    assert questions[0].keys() == {"id", "topic", "text", "choices"}
    code, out = submit(solved, "--json", "--answers", answers_file(solved, right_answers), capsys=capsys)
    assert (code, json.loads(out)["stage"]) == (0, "harden")
    (solved / "harden" / "layers.py").write_text((SOLUTIONS / "plain.py").read_text())
    code, out = submit(solved, "--json", capsys=capsys)
    assert (code, json.loads(out)["stage"]) == (0, "done")
    assert main(["challenge", "status", str(solved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == "done"


@pytest.mark.usefixtures("in_process")
def test_people_read_what_is_wrong(folder, solved, capsys):
    text = (SOLUTIONS / "plain.py").read_text()
    (folder / "cs336_basics" / "layers.py").write_text(text.replace("functional.silu", "functional.relu"))
    code, out = submit(folder, capsys=capsys)
    assert code == 1
    assert "RMSNorm          right\nSwiGLU           wrong: likely, relu instead of silu" in out
    assert "unexplained: the numbers differ" in out
    (folder / "cs336_basics" / "layers.py").write_text(text)
    code, out = submit(folder, capsys=capsys)
    assert code == 0
    assert "Build: passed." in out
    assert "Justify: 6 questions are open." in out
    assert f"prenorm challenge submit {folder} --answers FILE" in out
    code, out = submit(folder, "--answers", answers_file(folder, wrong_answers), capsys=capsys)
    assert code == 1
    assert out.count(": no, it is ") == 6
    code, out = submit(folder, "--answers", answers_file(folder, right_answers), capsys=capsys)
    assert code == 0
    assert out.count(": right.") == 6
    assert "Harden: One fault is in a copy of your code" in out
    code, out = submit(folder, capsys=capsys)
    assert code == 1
    assert main(["challenge", "status", str(folder)]) == 0
    assert "build    passed\njustify  passed\nharden   a fault waits in" in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
def test_a_new_workspace_is_not_written_yet(folder, capsys):
    code, out = submit(folder, capsys=capsys)
    assert code == 1
    assert "TransformerBlock not written yet" in out


@pytest.mark.usefixtures("in_process")
def test_a_terminal_is_asked(solved, capsys, monkeypatch):
    submit(solved, capsys=capsys)
    right = {id: str(answer) for id, answer in right_answers(load(solved / "challenge.json")).items()}
    replies = iter([reply for answer in right.values() for reply in ("?", answer)])
    monkeypatch.setattr("builtins.input", lambda prompt: next(replies))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out = submit(solved, capsys=capsys)
    assert code == 0
    assert out.count("must be") == 6  # "?" is no answer
    assert out.count(": right.") == 6


def test_the_end_of_input_leaves_a_question_open(monkeypatch):
    from prenorm.challenge.justify import Asked

    def ended(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    assert challenge._ask(Asked(id="a-1", topic="a", text="?", choices=())) is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["submit", "nowhere"], "there is no folder nowhere"),
        (["status", "."], "is no workspace: it has no challenge.json"),
        (["new", "a-file"], "a workspace is a folder, but a-file is a file"),
    ],
)
def test_bad_input_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    assert main(["challenge", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_broken_files_are_told(folder, capsys):
    (folder / "answers.json").write_text("{")
    assert main(["challenge", "submit", str(folder), "--answers", str(folder / "answers.json")]) == 2
    assert "answers.json is not JSON (line 1" in capsys.readouterr().err
    assert main(["challenge", "submit", str(folder), "--answers", "missing.json"]) == 2
    assert "missing.json" in capsys.readouterr().err
    (folder / "challenge.json").write_text("{")
    assert main(["challenge", "status", str(folder)]) == 2
    assert "challenge.json is not JSON (line 1" in capsys.readouterr().err


def test_new_and_status_do_not_wait_for_torch(tmp_path):
    program = (
        "import sys, prenorm.cli.main as m; "
        f"m.main(['challenge', 'new', {str(tmp_path / 'a')!r}]); m.main(['challenge', 'status', "
        f"{str(tmp_path / 'a')!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0
