import json

import numpy as np
import pytest

from prenorm.cli import main as cli


@pytest.fixture
def text(tmp_path):
    """A file of lines."""
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"some text {number}"}) + "\n" for number in range(60)))
    return path


def test_text_becomes_a_folder_that_training_takes(text, tmp_path, capsys):
    out = str(tmp_path / "tokens")
    assert cli.main(["data", str(text), "--out", out, "--vocab-size", "270", "--heldout-one-in", "5"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Read 60 documents")
    assert f"prenorm train --data {out}" in printed
    flags = ["--preset", "tiny", "--steps", "2", "--context", "16", "--max-seq-len", "16", "--d-model", "16"]
    run = str(tmp_path / "run")
    assert cli.main(["train", *flags, "--data", out, "--out", run, "--json"]) == 0
    result = capsys.readouterr()
    assert json.loads(result.out)["steps"] == 2
    assert result.err.startswith(f"{out}: Read 60 documents")


def test_json_says_what_was_done_and_the_rest_goes_to_standard_error(text, tmp_path, capsys):
    flags = ["--weights", "1", "2", "--json", "--vocab-size", "257"]
    (tmp_path / "b.txt").write_text("a text of its own")
    assert cli.main(["data", str(text), str(tmp_path / "b.txt"), "--out", str(tmp_path / "tokens"), *flags]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["settings"]["weights"] == [1.0, 2.0]
    assert printed["tokens"]["train"] == len(np.load(tmp_path / "tokens" / "train-00000.npy"))
    assert captured.err.startswith("Read 61 documents")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "takes at least one file or folder"),
        (["t.jsonl", "--vocab-size", "3"], "vocab_size must be an integer of at least 257"),
        (["t.jsonl", "--heldout-one-in", "1"], "heldout_one_in must be an integer of at least 2"),
        (["t.jsonl", "--weights", "0"], "each of weights must be greater than 0"),
        (["t.jsonl", "--weights", "1", "2"], "there must be a weight for each source, but there are 2 weights"),
        (["gone.jsonl"], "there is no file or folder at gone.jsonl"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(text, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", *flags, "--out", "tokens"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("prenorm data: ")
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
