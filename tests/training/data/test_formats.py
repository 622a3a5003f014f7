import json
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from prenorm.errors import DataError
from prenorm.training.data import formats
from prenorm.training.data.corpus import Corpus
from prenorm.training.data.formats import Conversation, LargeText, chunks

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture
def small(monkeypatch):
    """Limits that a test's files reach."""
    for name, size in (("LARGE", 1000), ("CHUNK", 64), ("LONGEST_LINE", 500)):
        monkeypatch.setattr(formats, name, size)


@pytest.mark.parametrize("size", [999, 1000, 1001, 5000])
def test_a_large_text_is_the_same_text_and_not_in_memory(tmp_path, small, size):
    expected = ("aäß世\r\n" * size)[: size // 2]
    text = "\ufeff".encode() + expected.encode()
    expected += "x" * (size - len(text))
    text = "\ufeff".encode() + expected.encode()
    (tmp_path / "t.txt").write_bytes(text)
    document: Any
    (document,) = Corpus([str(tmp_path)])
    assert isinstance(document.content, LargeText) == (len(text) >= 1000)
    assert "".join(chunks(document.content)) == expected
    middle = formats.part(document.content, 100, 300)
    assert "".join(chunks(middle)) == expected[100:300]
    assert formats.num_characters(document.content) == len(expected)


@pytest.mark.parametrize(
    ("end", "reason"), [(b"\0", "binary"), (b"\xe9", "not UTF-8"), (b"\xe4\xb8", "not UTF-8"), (b"", "empty")]
)
def test_a_fault_at_the_end_of_a_large_text_is_found_before_its_start_is_used(tmp_path, small, end, reason):
    (tmp_path / "t.txt").write_bytes((b"text " if end else b"     ") * 300 + end)
    corpus = Corpus([str(tmp_path)])
    assert list(corpus) == []
    assert corpus.skipped == {reason: 1}


def test_a_large_text_that_changes_is_noticed(tmp_path, small):
    (tmp_path / "t.txt").write_bytes(b"text " * 300)
    document: Any
    (document,) = Corpus([str(tmp_path)])
    (tmp_path / "t.txt").write_bytes(b"\xe9" * 3000)
    with pytest.raises(DataError, match=r"t\.txt changed while it was being read"):
        list(chunks(document.content))


def test_a_line_that_is_too_long_is_passed_over_and_the_next_is_read(tmp_path, small):
    lines = [json.dumps({"text": "a" * length}) for length in (10, 5000, 20, 490)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    corpus = Corpus([str(tmp_path)])
    assert [(document.place, len(document.content)) for document in corpus] == [(1, 10), (3, 20)]
    assert corpus.skipped == {"too long a line": 2}


def test_conversations_are_read_from_lines_and_rows(tmp_path):
    rows = [{"messages": TALK}, {"messages": TALK[:1] + TALK, "text": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.table({"id": [1], "messages": [TALK]}), tmp_path / "b.parquet")
    found = [document.content for document in Corpus([str(tmp_path)])]
    assert found == [Conversation(TALK), Conversation(TALK[:1] + TALK), Conversation(TALK)]


def test_a_text_beside_messages_is_the_document(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK, "text": "the text"}))
    assert [document.content for document in Corpus([str(tmp_path)])] == ["the text"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "empty"),
        (None, "empty"),
        ("Hi", "without messages"),
        (["Hi"], "without messages"),
        ([{"role": "assistant"}], "without messages"),
        ([{"role": "assistant", "content": None}], "without messages"),
        (TALK[:1], "without a reply"),
        ([{"role": "assistant", "content": " "}], "without a reply"),
        ([{"role": "assistant", "content": "\ud800"}], "half of a surrogate pair"),
    ],
)
def test_messages_that_are_none_are_skipped_with_the_reason_and_an_error_in_a_named_file(tmp_path, messages, reason):
    lines = [json.dumps({"messages": TALK}), json.dumps({"messages": messages})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus = Corpus([str(tmp_path)])
    assert len(list(corpus)) == 1
    assert corpus.skipped == {reason: 1}
    named = Corpus([str(tmp_path / "a.jsonl")])
    if reason == "empty":
        assert len(list(named)) == 1
    else:
        with pytest.raises(DataError, match=r"a\.jsonl, line 2 "):
            list(named)
