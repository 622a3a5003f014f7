import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from prenorm.errors import DataError
from prenorm.training.data import encoding, formats, writing
from prenorm.training.data.prepare import prepare
from prenorm.training.tokenizer import tokenizer_files, train_tokenizer

WORDS = "".join(f"word{number} " for number in range(40)) + "\n"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def made(target, *paths, say=lambda _: None, **fields):
    numbers = {"tokenizer": "", "vocab_size": 270, "sample_mb": 1, "one_in": 20, "weights": ()}
    return prepare(target, [str(path) for path in paths], say=say, **{**numbers, **fields})


@pytest.fixture
def given(tmp_path):
    """A tokenizer in a folder."""
    (tmp_path / "given").mkdir()
    for name, content in tokenizer_files(train_tokenizer([WORDS], 400)).items():
        (tmp_path / "given" / name).write_bytes(content)
    return str(tmp_path / "given")


def lines(path, *texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(folder, stream):
    tokens, starts = stream.tokens[:], stream.starts
    return [folder.tokenizer.decode(tokens[a + 1 : b].tolist(), skip_special_tokens=False) for a, b in pairwise(starts)]


def test_what_was_found_and_skipped_is_said_first(tmp_path, said):
    text = tmp_path / "text"
    text.mkdir()
    (text / "good.txt").write_text("good")
    (text / "bad.bin").write_bytes(b"\0")
    (text / "odd\n.txt").write_bytes(b"\xff")
    (text / "lines.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "thr')
    (text / ".hidden").write_text("hidden")
    folder = made(tmp_path / "out", text, say=said.append)
    assert said[0] == (
        "Read 3 documents, 10 bytes, from 2 files; skipped 3 (1 binary, 1 not JSON, 1 not UTF-8), 15 bytes; left out 1 "
        "(1 hidden). The first of each kind that was skipped: bad.bin (binary), lines.jsonl, line 3 (not JSON), "
        "'odd\\n.txt' (not UTF-8)."
    )
    assert "one document is held out: " in said[1]
    assert folder.summary["said"] == said[:-1]


def test_no_text_at_all_is_refused_and_leaves_nothing(tmp_path, given):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "bad.bin").write_bytes(b"\0")
    for tokenizer in ("", given):
        with pytest.raises(DataError, match=r"there is no text to train on; skipped 1 \(1 binary\), 1 byte; --data"):
            made(tmp_path / "out", tmp_path / "text", tokenizer=tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "text"]


def test_with_a_tokenizer_every_file_is_read_once(tmp_path, given, monkeypatch):
    for number in range(30):
        (tmp_path / f"file{number}.py").write_text(f"text {number}")
    opened, contents = [], formats.contents
    monkeypatch.setattr("prenorm.training.data.corpus.contents", lambda path: opened.append(path) or contents(path))
    made(tmp_path / "out", *sorted(tmp_path.glob("*.py")), tokenizer=given)
    assert sorted(opened) == sorted(tmp_path.glob("*.py"))


def test_text_that_changes_between_two_readings_is_noticed(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("text")
    train = train_tokenizer

    def changing(*arguments):
        (tmp_path / "b.txt").write_text("tent")
        return train(*arguments)

    monkeypatch.setattr("prenorm.training.data.prepare.train_tokenizer", changing)
    with pytest.raises(DataError, match="the text changed while it was being read"):
        made(tmp_path / "out", tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt")
    assert not (tmp_path / "out").exists()


def test_text_that_changes_while_it_is_read_once_is_noticed(tmp_path, given, monkeypatch):
    text, contents = lines(tmp_path / "t.jsonl", "a", "b", "c"), formats.contents

    def changing(path):
        yield from contents(path)
        lines(path, "a", "b", "c", "d")

    monkeypatch.setattr("prenorm.training.data.corpus.contents", changing)
    with pytest.raises(DataError, match="the text changed while it was being read"):
        made(tmp_path / "out", text, tokenizer=given)


def test_a_broken_chat_template_or_no_jinja_stops_no_text(tmp_path, given, monkeypatch):
    (Path(given) / "chat_template.jinja").write_text("{% nonsense %}")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    text = lines(tmp_path / "t.jsonl", "a", "b", "c")
    made(tmp_path / "out", text, tokenizer=given)
    text.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"text": "a"}))
    with pytest.raises(DataError, match="needs jinja2"):
        made(tmp_path / "other", text, tokenizer=given)


def test_exact_copies_across_the_split_are_said_and_kept(tmp_path, said):
    for number in (3, 6, 7, 8, 9):  # the first two are held out
        (tmp_path / f"file{number}.py").write_text("same text" if number in (3, 8, 9) else f"text {number}")
    folder = made(tmp_path / "out", tmp_path, say=said.append)
    assert said[1].startswith("2 training documents are exact copies of held-out ones, such as file8.py and file3.py:")
    assert sorted(texts_of(folder, folder.train)) == ["same text", "same text", "text 7"]


def test_copies_among_lines_are_never_on_two_sides(tmp_path, said):
    lines(tmp_path / "t.jsonl", *(f"text {number % 40}" for number in range(120)))
    folder = made(tmp_path / "out", tmp_path / "t.jsonl", say=said.append)
    assert len(said) == 2
    assert not {*texts_of(folder, folder.train)} & {*texts_of(folder, folder.heldout)}


def test_a_text_without_tokens_is_skipped_and_said(tmp_path, said):
    tokenizer = json.loads(tokenizer_files(train_tokenizer([], 257))["tokenizer.json"])
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "gone"}, "content": ""}
    (tmp_path / "t.json").write_text(json.dumps(tokenizer))
    (tmp_path / "text").mkdir()
    lines(tmp_path / "text" / "t.jsonl", "a", "gone", "b", "c", "gonegone")
    folder = made(tmp_path / "out", tmp_path / "text", tokenizer=str(tmp_path / "t.json"), say=said.append)
    assert "Read 3 documents, 3 bytes, from 1 file; skipped 2 (2 without a token), 12 bytes" in said[0]
    assert sorted(texts_of(folder, folder.train) + texts_of(folder, folder.heldout)) == ["a", "b", "c"]


def test_conversations_are_scored_on_replies_alone(tmp_path, given):
    talks = [
        [{"role": "user", "content": f"Hi {number}"}, {"role": "assistant", "content": f"Hello {number}"}]
        for number in range(40)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (tmp_path / "t.txt").write_text("plain text")
    folder = made(tmp_path / "out", tmp_path / "t.jsonl", tmp_path / "t.txt", tokenizer=given, one_in=4)
    replies, plain = 0, 0
    for stream in (folder.train, folder.heldout):
        assert stream.num_targets == int((stream.targets(np.arange(1, stream.num_tokens + 1)) >= 0).sum())
        for document, (a, b) in enumerate(zip(stream.starts[:-1], stream.starts[1:], strict=True)):
            targets = stream.targets(np.arange(a + 1, b + 1))
            text = folder.tokenizer.decode(targets[targets >= 0].tolist(), skip_special_tokens=False)
            path, place = stream.place_of(document)
            if path.endswith("t.txt"):
                plain += text == "plain text<|endoftext|>"
            else:
                replies += text == f" Hello {place - 1}<|endoftext|>"
    assert (replies, plain) == (40, 1)
    assert folder.summary["heldout_text"]["bytes"] > 0
    assert (folder.path / "chat_template.jinja").read_text().startswith("{% for message in messages %}")


def test_a_conversation_that_the_template_refuses_is_skipped_or_an_error(tmp_path, given, monkeypatch):
    source = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}{{ messages[1].content }}"
    (Path(given) / "chat_template.jinja").write_text(source)
    bad = [{"role": "user", "content": "no"}, TALK[1]]
    (tmp_path / "text").mkdir()
    path = tmp_path / "text" / "t.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in (TALK, bad, TALK)))
    folder = made(tmp_path / "out", tmp_path / "text", tokenizer=given)
    assert folder.summary["read"]["skipped"] == {"not for the chat template": 1}
    with pytest.raises(DataError, match=r"t\.jsonl, line 2 is refused by the chat template: not this"):
        made(tmp_path / "other", path, tokenizer=given)


def test_the_same_command_again_changes_nothing_and_another_is_refused(tmp_path, given, said):
    text, other = (lines(tmp_path / name, "a", "b", "c") for name in ("t.jsonl", "u.jsonl"))
    first = made(tmp_path / "out", text)
    made(tmp_path / "out", text, say=said.append)
    assert said == [f"{tmp_path / 'out'} has these tokens already."]
    for paths, fields, reason in (
        ((other,), {}, "those of .*t.jsonl"),
        ((text,), {"tokenizer": given}, "made by another tokenizer or other settings"),
        ((text,), {"one_in": 3}, "made by another tokenizer or other settings"),
    ):
        with pytest.raises(DataError, match=f"holds tokens already, but they are {reason}"):
            made(tmp_path / "out", *paths, **fields)
    lines(text, "a", "b", "c", "d")
    with pytest.raises(DataError, match=r"they are older than .*t\.jsonl"):
        made(tmp_path / "out", text)
    assert json.loads((first.path / "data.json").read_text())["sha256"] == first.summary["sha256"]


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path):
    text = lines(tmp_path / "t.jsonl", "a", "b", "c")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="must be a new folder, but holds other things"):
        made(tmp_path / "out", text)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_the_folder_may_be_the_one_that_one_stands_in(tmp_path, monkeypatch):
    text = lines(tmp_path / "t.jsonl", "a", "b", "c")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made(Path("."), text)
    assert (tmp_path / "here" / "data.json").exists()


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    text = lines(tmp_path / "t.jsonl", "a", "b", "c")
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "train-00009.npy").write_bytes(b"half")
    folder = made(tmp_path / "out", text)
    assert not (tmp_path / ".out.tmp").exists()
    assert not (folder.path / "train-00009.npy").exists()


def test_an_error_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    text = lines(tmp_path / "t.jsonl", "a", "b", "c")
    monkeypatch.setattr(writing, "copies", full)
    with pytest.raises(DataError, match="out could not be written: No space left on device; make room"):
        made(tmp_path / "out", text)
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_tokens_do_not_depend_on_the_number_of_cores(tmp_path, given, monkeypatch):
    monkeypatch.setattr(encoding, "SLICE_CHARACTERS", 64)
    text = lines(tmp_path / "t.jsonl", *(f"text {number}\n" * 9 for number in range(50)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    many = made(tmp_path / "many", text, tokenizer=given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    one = made(tmp_path / "one", text, tokenizer=given)
    assert many.summary["arrays"] == one.summary["arrays"]


@pytest.mark.long
def test_memory_does_not_grow_with_the_text(tmp_path, given):
    for name, repeated in (("small", 10), ("large", 60)):
        with (tmp_path / f"{name}.txt").open("w") as file:
            for _ in range(repeated):
                file.write(WORDS * 2500)
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(repeated * 40):
                file.write(json.dumps({"text": f"{number} {WORDS * 50}"}) + "\n")
    program = (
        "import sys, resource\n"
        "from pathlib import Path\n"
        "from prenorm.training.data.prepare import prepare\n"
        "for name in ('small', 'large'):\n"
        "    prepare(Path(f'out-{name}'), [f'{name}.txt', f'{name}.jsonl'], tokenizer='given', vocab_size=1,\n"
        "            sample_mb=1, one_in=20, weights=(), say=lambda _: None)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    small, large = map(int, done.stdout.split())
    more = sum((tmp_path / f"large.{end}").stat().st_size * 5 / 6 for end in ("txt", "jsonl"))
    assert large - small < more / 2  # the tables of xz fill up to 2 MB of held-out text
