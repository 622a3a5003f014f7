import csv
import functools
import io
import os

import pytest
from rich.console import Console

from prenorm.checks.report.batch import check_all
from prenorm.checks.report.handed_in import find_submissions
from prenorm.checks.report.html import as_page
from prenorm.checks.report.result import Result, frequencies, in_order
from prenorm.checks.report.table import print_table, to_csv
from prenorm.checks.verdict import Finding, Verdict
from prenorm.errors import ConfigError

from .examples import check


@pytest.fixture
def folder(tmp_path):
    """Submissions that say what should become of them."""
    for name, wish in {"ann": "good", "bob": "bad", "cy": "nothing", "dee": "die", "eve": "raise"}.items():
        (tmp_path / name / "work").mkdir(parents=True)
        (tmp_path / name / "work" / "layers.py").write_text(wish)
    (tmp_path / "finn.py").write_text("good")
    (tmp_path / "gus").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "ann" / ".venv").mkdir()
    (tmp_path / "ann" / ".venv" / "layers.py").write_text("not hers")
    return tmp_path


def test_submissions_are_subfolders_and_files(folder):
    found = find_submissions(folder, "layers.py:Block")
    assert [one.name for one in found] == ["ann", "bob", "cy", "dee", "eve", "finn.py", "gus", "notes.txt"]
    assert found[0].subject == f"{folder / 'ann' / 'work' / 'layers.py'}:Block"
    assert found[5].subject == f"{folder / 'finn.py'}:Block"
    assert (found[6].subject, found[6].problem) == (None, "it has no layers.py, and no class Block: it is empty")
    assert found[7].problem == "it is a .txt file; only folders, .py files, notebooks and zips are read"


def test_two_files_of_the_name_are_a_problem_that_a_longer_pattern_solves(folder):
    (folder / "bob" / "other").mkdir()
    (folder / "bob" / "other" / "layers.py").write_text("good")
    assert "more than once: other/layers.py, work/layers.py" in find_submissions(folder)[1].problem
    assert find_submissions(folder, "work/layers.py:TransformerBlock")[1].subject is not None


@pytest.mark.parametrize("pattern", ["layers.py", "layers:Block", "layers.py:", "layers.py:a b", ""])
def test_a_pattern_that_is_none_is_refused(pattern, folder):
    with pytest.raises(ConfigError, match=r"the pattern must be FILE.py:CLASS, such as layers.py:TransformerBlock"):
        find_submissions(folder, pattern)


def test_a_folder_that_is_none_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        find_submissions(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"neither subfolders nor \.py files"):
        find_submissions(folder / "gus")


def test_one_that_breaks_never_stops_the_others(folder, capsys):
    (folder / "notes.txt").unlink()
    submissions = find_submissions(folder)
    results = in_order(list(check_all(submissions, functools.partial(check), workers=2)), submissions)
    assert [(one.name, one.outcome, one.problem) for one in results] == [
        ("ann", "passed", ""),
        ("bob", "failed", ""),
        ("cy", "problem", "there is nothing to judge."),
        ("dee", "problem", "the process that checked it died"),
        ("eve", "problem", "ZeroDivisionError: ours"),
        ("finn.py", "passed", ""),
        ("gus", "problem", "it has no layers.py, and no class TransformerBlock: it is empty"),
    ]
    assert results[1].to_json()["verdict"]["findings"][0]["id"] == "post_norm"
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert [row["outcome"] for row in rows] == [one.outcome for one in results]
    assert rows[1]["faults"] == "post_norm eps_ignored"
    assert rows[1]["evidence"].split("\n")[1] == "eps_ignored: e"
    assert rows[1]["where"] == "b/layers.py:7"
    print_table(results, Console())
    shown = capsys.readouterr().out
    assert "2 passed, 1 failed, 4 problem" in shown
    assert "eps_ignored 1, post_norm 1" in shown


def test_one_that_could_not_be_judged_has_neither_passed_nor_failed():
    unknown = Finding(id="arguments_unknown", message="m", evidence="what is zork?", mend="w", counts=False)
    choice = Finding(id="layer_norm", message="m", evidence="it subtracts the mean", mend="w", counts=False)
    unjudged = Result(name="ann", verdict=Verdict(subject="a", findings=(unknown,), judged=False))
    chosen = Result(name="bob", verdict=Verdict(subject="b", findings=(choice,)))
    first, second = csv.DictReader(io.StringIO(to_csv([unjudged, chosen])))
    assert (first["outcome"], first["faults"], first["problem"]) == ("problem", "", "what is zork?")
    assert (second["outcome"], second["faults"], second["does not count"]) == ("passed", "", "layer_norm")
    assert second["problem"] == ""
    assert frequencies([unjudged, chosen]) == []
    page = as_page([unjudged, chosen], "all")
    assert "<summary>what is zork?</summary>" in page
    assert "<summary>no fault <" in page


def test_a_process_that_dies_once_takes_no_result_away(tmp_path):
    for name, wish in {"a": "die once", "b": "good", "c": "good"}.items():
        (tmp_path / f"{name}.py").write_text(wish)
    results = list(check_all(find_submissions(tmp_path), check, workers=1))
    assert {one.name: one.outcome for one in results} == {"a.py": "passed", "b.py": "passed", "c.py": "passed"}


def test_as_many_run_at_a_time_as_there_are_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("meet")
    assert [one.outcome for one in check_all(find_submissions(tmp_path), check)] == ["passed", "passed"]


def test_nothing_to_check_starts_no_process(folder):
    assert [one.outcome for one in check_all(find_submissions(folder)[-1:], check)] == ["problem"]


def test_a_cell_is_never_a_formula(tmp_path):
    (tmp_path / "=1+1").mkdir()
    assert "\n'=1+1,problem" in to_csv(list(check_all(find_submissions(tmp_path), check)))


GOOD = Verdict(subject="a")


def test_names_that_begin_alike_are_told_apart_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"Otto_{number}_assignsubmission_file_of_the_first_homework.zip" for number in (1234664, 1234665)]
    print_table([Result(name=name, verdict=GOOD) for name in names], Console())
    printed = capsys.readouterr().out
    letters = "".join(part for line in printed.splitlines() for part in line.split("│")[1:2]).replace(" ", "")
    assert all(name in letters for name in names)


def test_what_is_noted_of_a_submission_is_in_every_table(capsys):
    noted = [Result(name="ann", verdict=GOOD, note="not unpacked: model.pt")]
    print_table(noted, Console())
    assert "[not unpacked: model.pt]" in capsys.readouterr().out
    assert "not unpacked: model.pt" in as_page(noted, "all")
    assert next(csv.DictReader(io.StringIO(to_csv(noted))))["note"] == "not unpacked: model.pt"


def test_whose_block_is_prenorms_own_is_said(capsys):
    borrowed = Verdict(subject="b", conventions={"from_prenorm": "Linear, RMSNorm"})
    print_table([Result(name="ann", verdict=GOOD), Result(name="bob", verdict=borrowed)], Console())
    assert "with prenorm's own classes: bob\n" in capsys.readouterr().out
