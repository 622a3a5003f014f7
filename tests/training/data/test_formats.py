import json
from datetime import UTC, datetime
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from prenorm.errors import DataError
from prenorm.training.data import formats
from prenorm.training.data.conversations import Conversation
from prenorm.training.data.corpus import Corpus
from prenorm.training.data.formats import LargeText, chunks
from prenorm.training.data.prepare import prepare

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]


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


def test_a_column_gives_messages_without_the_fields_that_only_others_have(tmp_path):
    (call,) = CALLS
    talk: list[Any] = [TALK[0], {"role": "assistant", "content": None, "tool_calls": CALLS}, *TALK[1:]]
    table = pyarrow.table({"messages": [talk, TALK], "text": [None, "a text"], "tools": [[call], None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [document.content for document in Corpus([str(tmp_path)])] == [Conversation(talk, [call]), "a text"]


def test_a_date_in_a_message_of_a_column_is_a_string(tmp_path):
    talk = [message | {"at": datetime(2026, 1, 2, tzinfo=UTC), "raw": b"x"} for message in TALK]
    parquet.write_table(pyarrow.table({"messages": [talk]}), tmp_path / "a.parquet")
    (document,) = Corpus([str(tmp_path)])
    strings = {"at": "2026-01-02 00:00:00+00:00", "raw": "b'x'"}
    assert document.content == Conversation([message | strings for message in TALK])


@pytest.mark.parametrize("value", [5, 0.5, b"text", datetime(2026, 1, 2, tzinfo=UTC), ["a"], {"a": "b"}])
def test_a_column_of_something_else_than_strings_is_no_text(tmp_path, value):
    parquet.write_table(pyarrow.table({"text": [value]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match='row 0 must be an object with a string named "text"'):
        list(Corpus([str(tmp_path / "a.parquet")]))


@pytest.mark.parametrize("depth", [100, 450, 5000])
def test_a_conversation_that_is_nested_deeply_stops_no_run(tmp_path, depth):
    call = '{"function": {"name": "f", "arguments": ' + "[" * depth + "]" * depth + "}}"
    lines = [json.dumps({"messages": [*TALK, {"role": "user", "content": f"{number}"}]}) for number in range(30)]
    lines.append('{"messages": [{"role": "assistant", "content": "a <|endoftext|> b", "tool_calls": [' + call + "]}]}")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(lines))
    said: list[str] = []
    options: Any = {"tokenizer": "", "vocab_size": 300, "sample_mb": 1, "one_in": 5, "weights": ()}
    prepare(tmp_path / "out", [str(folder)], say=said.append, **options)
    assert "skipped 1 (1 not " in said[0] or "skipped 1 (1 without messages)" in said[0]


def test_the_byte_that_is_not_utf8_is_named(tmp_path, small):
    for name, before, after in (
        ("short", b"\xef\xbb\xbfab", b"c"),
        ("long", b"text " * 300, b"c" * 300),
        ("marked", b"\xef\xbb\xbf" + b"text " * 300, b"c"),
        ("cut", b"text " * 300, b""),
        ("early", b"a", b"c" * 3000),
    ):
        (tmp_path / name).write_bytes(before + b"\xe9" + after)
        with pytest.raises(DataError, match=rf"{name} .* is not UTF-8, at byte {len(before):,} \(0xe9\); iconv"):
            list(Corpus([str(tmp_path / name)]))


def test_a_record_without_a_text_is_refused_with_the_fields_that_it_has(tmp_path):
    for record, found in (({"body": "x", "id": 1}, "'body', 'id'"), ({"text": 5}, "no string there"), ([], "none")):
        (tmp_path / "a.jsonl").write_text(json.dumps(record))
        with pytest.raises(DataError, match=rf'a string named "text", or with "messages", but has {found}; give one'):
            list(Corpus([str(tmp_path / "a.jsonl")]))


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
