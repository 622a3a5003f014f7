import json
import os
import sysconfig
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from prenorm.errors import DataError
from prenorm.training.corpus import Corpus


def documents(*paths):
    return [(document.name, document.text) for document in Corpus([str(path) for path in paths])]


def test_a_folder_gives_its_files_sorted_by_name_however_they_lie_on_disk(tmp_path):
    for order in ("abc", "cab"):
        root = tmp_path / order
        (root / "b").mkdir(parents=True)
        for name in order:
            (root / "b" / f"{name}.txt").write_text(f"text {name}")
            (root / f"{name}.py").write_text(f"code {name}")
    names = ["a.py", "b.py", "b/a.txt", "b/b.txt", "b/c.txt", "c.py"]
    assert [name for name, _ in documents(tmp_path / "abc")] == names
    assert documents(tmp_path / "abc") == documents(tmp_path / "cab")


def test_texts_are_read_byte_for_byte(tmp_path):
    text = "\ufeffa\r\nb\rc\u2028d\n\n  \t"
    (tmp_path / "odd.txt").write_bytes(text.encode())
    assert documents(tmp_path / "odd.txt") == [("odd.txt", text)]


def test_a_folder_passes_over_what_is_no_text_and_counts_it(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "binary.bin").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "broken.txt").symlink_to("nowhere")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "cached.txt").write_text("cached")
    os.mkfifo(tmp_path / "pipe")
    corpus = Corpus([str(tmp_path)])
    for _ in range(2):
        assert [document.name for document in corpus] == ["good.txt"]
        assert corpus.skipped == {
            "binary": 1,
            "empty": 1,
            "not UTF-8": 1,
            "not a regular file": 1,
            "unreadable (No such file or directory)": 1,
        }


def test_runs_in_a_folder_are_passed_over(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "config.toml").write_text("a setting")
    for name in ("config.toml", "metrics.jsonl", "data/train.txt"):
        (tmp_path / "runs" / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "demo" / name).write_text("no text")
    assert [name for name, _ in documents(tmp_path)] == ["config.toml", "good.txt"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [("b.txt", b"a\0b", "binary"), ("e.txt", b"", "empty"), ("l.txt", b"\xe9", "not UTF-8")],
)
def test_a_file_that_was_named_is_refused_when_it_is_no_text(tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} cannot be trained on: it is {fault}"):
        documents(tmp_path / name)


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no file or folder at .*nothing"):
        Corpus([str(tmp_path / "nothing")])


def test_jsonl_gives_a_document_a_line(tmp_path):
    lines = [{"text": "one\n"}, {"text": "", "id": 3}, {"id": 4, "text": "zwei ä"}]
    (tmp_path / "t.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    corpus = Corpus([str(tmp_path)])
    assert [tuple(document) for document in corpus] == [("t.jsonl:0", "one\n"), ("t.jsonl:2", "zwei ä")]
    assert corpus.skipped == {"empty": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{text", "line 2 is not JSON"),
        (b'{"text": "\xff"}', "line 2 is not JSON"),
        (b'["text"]', 'line 2 must be an object with a string named "text"'),
        (b'{"body": "x"}', 'line 2 must be an object with a string named "text"'),
        (b'{"text": 3}', 'line 2 must be an object with a string named "text"'),
        (rb'{"text": "\ud800"}', "line 2 has half of a surrogate pair"),
        (b"[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "x"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"t\.jsonl, ") as raised:
        documents(tmp_path)
    assert message in str(raised.value)


def test_parquet_gives_a_document_a_row(tmp_path):
    table = pyarrow.table({"id": [1, 2, 3], "text": ["one", None, "drei ä"]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    assert documents(tmp_path) == [("t.parquet:0", "one"), ("t.parquet:2", "drei ä")]


def test_parquet_that_is_broken_or_has_no_text_is_refused(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "body.parquet")
    parquet.write_table(pyarrow.table({"text": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read as parquet"):
        documents(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"body\.parquet must have a column named text, but has body"):
        documents(tmp_path / "body.parquet")
    with pytest.raises(DataError, match=r"numbers\.parquet, row 0"):
        documents(tmp_path / "numbers.parquet")


def test_without_pyarrow_parquet_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'prenorm\[parquet\]'"):
        documents(tmp_path)


def test_the_default_is_pythons_own_library_without_what_was_installed():
    names = [source.name for source in Corpus().sources]
    assert "json/decoder.py" in names
    assert all(name.endswith(".py") and "site-packages" not in name for name in names)
    assert names == sorted(names)
    assert (Path(sysconfig.get_paths()["stdlib"]) / names[0]).is_file()
