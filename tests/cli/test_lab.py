import json
import re
import subprocess
import sys
from typing import Any

import pytest

from prenorm.cli import lab
from prenorm.cli.main import main
from prenorm.lab.sweep import Stopped


def error_line(capsys, *argv):
    assert main(["lab", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_help_does_without_torch():
    code = (
        "import sys; from prenorm.cli.main import main\n"
        "for name in ('depth', 'norm', 'activation', 'checkpointing', 'rope', 'attention'):\n"
        "    assert main(['lab', name, '--help']) == 0\n"
        "assert main(['lab', '--help']) == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_experiment_is_measured_once_and_told_as_text_or_as_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prenorm.lab.rope.SEEDS", 2)
    monkeypatch.setattr("prenorm.page.DOTS_PER_INCH", 30)
    out = tmp_path / "rope"
    assert main(["lab", "rope", "--out", str(out), "--workers", "1"]) == 0
    told = capsys.readouterr()
    assert re.search(r"^agrees       scores depend on the distance alone.*: \S+ \[\S+, \S+\]$", told.out, re.MULTILINE)
    assert str(out / "rope.html") in told.out
    assert "rope: 0 of 48 cells" in told.err
    cells = (out / "cells.jsonl").read_bytes()
    assert main(["lab", "rope", "--out", str(out), "--workers", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "rope.json").read_text())
    assert (out / "cells.jsonl").read_bytes() == cells
    assert {path.name for path in out.iterdir()} == {
        *("cells.jsonl", "lab.json", "rope.csv", "rope.html", "rope.json", "rope.png")
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["depth", "--out", "x", "--quick", "--full"], "give one of them"),
        (["depth", "--out", "x", "--workers", "0"], "workers must be an integer of at least 1, not 0"),
        (["norm", "--out", "x", "--seed", "-1"], "seed must be an integer of at least 0, not -1"),
        (["attention", "no/such/run", "--prompt", "a"], "there is no folder no/such/run"),
    ],
)
def test_bad_flags_are_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other things; choose another" in error_line(capsys, "rope", "--out", tmp_path)


def test_depth_has_three_scales_and_its_seed():
    for flags, seeds in ((["--quick"], (5, 6, 7)), (["--full"], (5, 6, 7)), ([], (5, 6, 7))):
        parsed: Any = lab.parse(["depth", "--out", "x", "--seed", "5", *flags])
        experiment = lab._experiment(parsed)
        assert experiment.name == "depth"
        assert (parsed.quick, parsed.full) == ("--quick" in flags, "--full" in flags)
        assert lab._scale(parsed).seeds == seeds


def test_a_stopped_sweep_says_how_to_go_on_and_exits_as_the_signal_has_it(tmp_path, capsys, monkeypatch):
    from prenorm.lab.folder import open_folder

    def stopped(experiment, folder, *, workers):
        with open_folder(folder, "rope") as cells:
            raise Stopped(15, 3, cells)

    monkeypatch.setattr("prenorm.lab.experiment.run_experiment", stopped)
    assert main(["lab", "rope", "--out", str(tmp_path / "out")]) == 128 + 15
    assert "3 cells of this command" in capsys.readouterr().err


def test_attention_leaves_a_page_and_prints_its_figures(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["lab", "attention", str(run_folder), "--prompt", "def", "--out", str(out)]
    assert main(argv) == 0
    assert f"The page: {out / 'attention.html'}" in capsys.readouterr().out
    assert main([*argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tokens"] == ["<|endoftext|>", "d", "e", "f"]
    assert len(record["stream_rms"]) == 3
    too_long = ["attention", run_folder, "--prompt", "x" * 64, "--out", out]
    assert "at most 64 tokens, but has 65" in error_line(capsys, *too_long)
    beyond = ["attention", run_folder, "--prompt", "x" * 50, "--out", out]
    assert "max_seq_len" in error_line(capsys, *beyond)
