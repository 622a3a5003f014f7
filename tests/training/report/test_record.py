"""What is read of a run's folder, whole, unfinished or broken."""

import json

import pytest

from prenorm.errors import CheckpointError, ConfigError, PrenormError
from prenorm.training.report.record import read_run

from .runs import write_run


def test_lines_of_steps_evaluations_and_skipped_steps_are_told_apart(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert [record["step"] for record in run.steps] == [1, 2, 4]
    assert [record["step"] for record in run.skipped] == [3]
    assert [record["eval_loss"] for record in run.evaluations] == [4.0, 3.5]
    assert run.final is not None
    assert run.final["eval_loss"] == 3.25
    assert run.checkpoints == [(4, 10)]
    assert run.data == ["Read 2 documents."]
    assert run.kept == ["spike-step-00000004.json"]


def test_a_run_that_goes_on_is_read_up_to_its_last_whole_line(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run = read_run(folder)
    assert run.result is None
    assert run.final is None
    assert run.steps[-1]["step"] == 4


def test_reading_changes_nothing(tmp_path):
    folder = write_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    read_run(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"RUN must be the folder of a run.*has no config\.toml"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "samples.jsonl"])
def test_a_broken_file_is_named(name, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(json.dumps(["no record"]) + "\n")
    with pytest.raises(PrenormError, match=name) as caught:
        read_run(folder)
    assert isinstance(caught.value, CheckpointError)


def test_a_finished_run_that_goes_on_has_no_final_score_yet(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "skipped": "the loss is nan"}) + "\n")
    run = read_run(folder)
    assert run.final is None
    assert run.newest_step == 5
