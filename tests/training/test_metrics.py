import contextlib
import json

import pytest

from prenorm.errors import CheckpointError
from prenorm.training.metrics import Metrics, read_metrics


def test_what_is_written_is_read_and_is_a_line_each(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": 1, "loss": 2.5}, {"step": 1, "eval_loss": 0.1 + 0.2}]
    with Metrics(path, up_to_step=0) as metrics:
        for number, record in enumerate(records, start=1):
            metrics.write(record)
            assert read_metrics(path) == records[:number]  # at once, not when the file is closed
        metrics.sync()
    assert [json.loads(line) for line in path.read_text().splitlines()] == records


def test_lines_after_the_checkpoint_and_a_torn_last_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "eval_loss": 1.0}\n{"step": 3}\n{"step": 4, "lo')
    with Metrics(path, up_to_step=2) as metrics:
        metrics.write({"step": 3, "loss": 1.5})
    expected = [{"step": 1}, {"step": 2}, {"step": 2, "eval_loss": 1.0}, {"step": 3, "loss": 1.5}]
    assert read_metrics(path) == expected


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("line", ["no json", "[]", '{"loss": 1.0}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2.* Delete that line"):
        read_metrics(path)


@pytest.mark.parametrize(("up_to_step", "kept"), [(0, 0), (1, 1), (3, 3)])
def test_what_a_power_cut_spoiled_after_the_checkpoint_is_dropped(tmp_path, up_to_step, kept):
    path = tmp_path / "metrics.jsonl"
    good = [f'{{"step": {step}}}\n' for step in range(1, 7)]
    path.write_text("".join([*good[:4], "\0" * 30, *good[4:]]))
    Metrics(path, up_to_step=up_to_step).__exit__()
    assert path.read_text() == "".join(good[:kept])


def test_a_spoiled_line_before_the_checkpoint_is_an_error_and_not_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1}\n\0\0\n{"step": 3}\n'
    path.write_text(text)
    with pytest.raises(CheckpointError, match="line 2"):
        Metrics(path, up_to_step=3)
    assert path.read_text() == text


def test_a_full_disk_is_one_error_that_says_how_to_go_on(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", up_to_step=0)
    metrics._file.close()
    with open("/dev/full", "a") as full, metrics:
        metrics._file = full
        with pytest.raises(CheckpointError, match="No space left on device; make room, then go on with --resume"):
            metrics.write({"step": 1})
        metrics._file = (tmp_path / "other").open("w")
        with contextlib.suppress(OSError):
            full.close()


def test_it_knows_which_steps_have_a_record_but_for_the_one_of_all_text(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, up_to_step=0) as metrics:
        metrics.write({"step": 1, "loss": 2.0})
        metrics.write({"step": 1, "eval_loss": 2.0})
        metrics.write({"step": 2, "eval_loss": 1.0, "all_text": True})
        assert metrics.has(1, "eval_loss")
    with Metrics(path, up_to_step=2) as metrics:
        assert (metrics.has(1, "loss"), metrics.has(2, "loss")) == (True, False)
        assert (metrics.has(1, "eval_loss"), metrics.has(2, "eval_loss")) == (True, False)


def test_every_record_is_handed_on(tmp_path):
    seen = []
    with Metrics(tmp_path / "metrics.jsonl", up_to_step=0, also=seen.append) as metrics:
        metrics.write({"step": 1, "loss": 2.0})
    assert seen == [{"step": 1, "loss": 2.0}]
