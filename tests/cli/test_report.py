"""`prenorm report`: the page where it belongs, and errors in one line."""

import json

from prenorm.cli.main import main

from ..training.report.runs import write_run


def test_the_page_is_in_the_runs_folder(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert str(folder / "report.html") in capsys.readouterr().out


def test_several_runs_make_one_page_and_json_says_where(tmp_path, capsys):
    folders = [str(write_run(tmp_path / name)) for name in ("a", "b")]
    assert main(["report", *folders, "--out", str(tmp_path / "both.html"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(tmp_path / "both.html")
    assert [one["eval_loss"] for one in said["runs"]] == [3.25, 3.25]


def test_no_run_and_a_folder_without_one_are_bad_usage(tmp_path, capsys):
    assert main(["report"]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "has no config.toml" in capsys.readouterr().err
