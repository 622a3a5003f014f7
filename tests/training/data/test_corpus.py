import json
import os
import re
import sysconfig
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from prenorm.errors import DataError
from prenorm.training.data.corpus import Corpus


def documents(*paths):
    return [(document.name, document.content) for document in Corpus([str(path) for path in paths])]


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
    text = "a\r\nb\ufeff\rc\u2028d\n\n  \t"
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
    assert [(document.name, document.content) for document in corpus] == [
        ("t.jsonl, line 1", "one\n"),
        ("t.jsonl, line 5", "zwei ä"),
    ]
    assert corpus.skipped == {"empty": 1}
    assert corpus.files == 1


BAD_LINES = [
    (b"{text", "line 2 is not JSON", "not JSON"),
    (b'{"text": "\xff"}', "line 2 is not JSON", "not JSON"),
    (b'["text"]', 'line 2 must be an object with a string named "text"', "without a text"),
    (b'"text"', 'line 2 must be an object with a string named "text"', "without a text"),
    (b"null", 'line 2 must be an object with a string named "text"', "without a text"),
    (b'{"body": "x"}', 'line 2 must be an object with a string named "text"', "without a text"),
    (b'{"text": 3}', 'line 2 must be an object with a string named "text"', "without a text"),
    (rb'{"text": "\ud800"}', "line 2 has half of a surrogate pair", "half of a surrogate pair"),
    (b"[" * 100_000, "line 2 is not JSON", "not JSON"),
]


@pytest.mark.parametrize(("line", "message", "reason"), BAD_LINES)
def test_a_bad_line_of_jsonl_is_an_error_in_a_file_that_was_named_and_counted_in_a_folder(
    tmp_path, line, message, reason
):
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "x"}\n' + line + b'\n{"text": "y"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl, ") as raised:
        documents(tmp_path / "t.jsonl")
    assert message in str(raised.value)
    corpus = Corpus([str(tmp_path)])
    assert [(document.name, document.content) for document in corpus] == [
        ("t.jsonl, line 1", "x"),
        ("t.jsonl, line 3", "y"),
    ]
    assert corpus.skipped == {reason: 1}
    assert corpus.first == {reason: "t.jsonl, line 2"}
    assert corpus.skipped_bytes == len(line) + 1


def write(path, texts):
    """A file of these texts, in the format of its name."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        case ".parquet":
            parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())}), path)
        case _:
            path.write_text("".join(text or "" for text in texts))


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("text", [None, "", " \n", "\u3000"])
def test_a_text_that_is_missing_or_white_space_is_no_document_in_any_format(tmp_path, name, text):
    write(tmp_path / name, [text])
    write(tmp_path / "other.txt", ["some"])
    corpus = Corpus([str(tmp_path)])
    assert [document.name for document in corpus] == ["other.txt"]
    assert corpus.skipped == {"empty": 1}


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.parquet"])
def test_a_file_without_any_text_is_refused_when_it_is_named_and_counted_in_a_folder(tmp_path, name):
    write(tmp_path / name, [])
    with pytest.raises(DataError, match=f"{name} cannot be trained on: it is empty; name another file"):
        documents(tmp_path / name)
    corpus = Corpus([str(tmp_path)])
    assert list(corpus) == []
    assert corpus.skipped == {"empty": 1}


FAULTS = {
    "t.txt": {"binary": b"a\0b", "not UTF-8": b"\xe9", "not UTF-8 but UTF-16": "text".encode("utf-16")},
    "t.jsonl": {"not JSON": b"{", "without a text": b"{}", "not UTF-8 but UTF-16": '{"text": "x"}'.encode("utf-16")},
    "t.parquet": {"not parquet": b"PAR1"},
}


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, faults in FAULTS.items() for reason in faults])
def test_a_fault_is_an_error_in_a_file_that_was_named_and_counted_in_a_folder(tmp_path, name, reason):
    (tmp_path / name).write_bytes(FAULTS[name][reason])
    write(tmp_path / "other.txt", ["some"])
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        documents(tmp_path / name)
    corpus = Corpus([str(tmp_path)])
    assert [document.name for document in corpus] == ["other.txt"]
    assert corpus.skipped == {reason: 1}
    assert corpus.first[reason].startswith(name)
    assert corpus.skipped_bytes == len(FAULTS[name][reason])


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}', encoding="utf-8-sig")
    assert [text for _, text in documents(tmp_path)] == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl", "pipe.parquet"])
def test_a_pipe_is_passed_over_under_any_name(tmp_path, name):
    os.mkfifo(tmp_path / name)
    corpus = Corpus([str(tmp_path)])
    assert list(corpus) == []
    assert corpus.skipped == {"not a regular file": 1}


def test_parquet_gives_a_document_a_row(tmp_path):
    table = pyarrow.table({"id": [1, 2, 3], "text": ["one", None, "drei ä"]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    assert documents(tmp_path) == [("t.parquet, row 0", "one"), ("t.parquet, row 2", "drei ä")]


def test_parquet_that_is_broken_or_has_no_text_is_refused(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "body.parquet")
    parquet.write_table(pyarrow.table({"text": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read as parquet"):
        documents(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"body\.parquet must have a column named text or messages, but has 'body'"):
        documents(tmp_path / "body.parquet")
    with pytest.raises(DataError, match=r"numbers\.parquet, row 0"):
        documents(tmp_path / "numbers.parquet")


def test_without_pyarrow_parquet_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'prenorm\[data\]'"):
        documents(tmp_path)


def test_the_default_is_pythons_own_library_without_what_was_installed():
    names = [source.name for source in Corpus().sources]
    assert "json/decoder.py" in names
    assert all(name.endswith(".py") and "site-packages" not in name for name in names)
    assert names == sorted(names)
    assert (Path(sysconfig.get_paths()["stdlib"]) / names[0]).is_file()
