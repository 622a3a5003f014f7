import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenorm.errors import DataError
from prenorm.training.corpus import Corpus
from prenorm.training.split import held_out, split


def sides(folder, say=lambda _: None):
    return {document.name: side for document, side in split(Corpus([str(folder)]), say)}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_side_is_the_hash_of_the_name(name):
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    assert held_out(name) == (number % 20 == 0)


def test_the_split_is_pinned():
    names = [f"file{number}.py" for number in range(200)]
    assert [name for name in names if held_out(name)] == [
        "file3.py",
        "file6.py",
        "file15.py",
        "file32.py",
        "file33.py",
        "file46.py",
        "file65.py",
        "file88.py",
        "file100.py",
        "file129.py",
        "file149.py",
        "file162.py",
        "file176.py",
    ]


def test_a_document_stays_on_its_side_whatever_is_beside_it(texts, tmp_path):
    before = sides(texts)
    assert set(before.values()) == {True, False}
    for path in texts.rglob("*.py"):
        copy = tmp_path / path.relative_to(texts)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "another.py").write_text("more")
    after = sides(tmp_path)
    assert {name: after[name] for name in before} == before


def test_both_sides_together_are_every_document_once(texts):
    corpus = split(Corpus([str(texts)]), lambda _: None)
    both = sorted([*corpus.texts(heldout=False), *corpus.texts(heldout=True)])
    assert both == sorted(document.text for document in Corpus([str(texts)]))


def test_where_the_hash_leaves_a_side_empty_one_document_is_held_out_aloud(tmp_path, said):
    for name in "def":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    assert sorted(sides(tmp_path, said.append).values()) == [False, False, True]
    assert "one document is held out" in said[-1]


def test_the_tail_of_a_single_document_is_held_out_aloud(tmp_path, said):
    text = "".join(f"line {number}\n" for number in range(1000))
    (tmp_path / "one.txt").write_text(text)
    corpus = split(Corpus([str(tmp_path / "one.txt")]), said.append)
    (start,), (end,) = corpus.texts(heldout=False), corpus.texts(heldout=True)
    assert start + end == text
    assert end.startswith("line 9")
    assert 0.04 < len(end) / len(text) < 0.06
    assert "one document" in said[-1]


def test_what_was_found_and_skipped_is_said(tmp_path, said):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.bin").write_bytes(b"\0")
    (tmp_path / "odd\n.txt").write_bytes(b"\xff")
    (tmp_path / "lines.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "thr')
    (tmp_path / ".hidden").write_text("hidden")
    split(Corpus([str(tmp_path)]), said.append)
    assert said[0] == (
        "Read 3 documents, 10 bytes, from 2 files; skipped 3 (1 binary, 1 not JSON, 1 not UTF-8), 15 bytes; left out 1 "
        "(1 hidden). The first of each kind that was skipped: bad.bin (binary), lines.jsonl, line 3 (not JSON), "
        "'odd\\n.txt' (not UTF-8)."
    )


def test_no_text_at_all_is_refused(tmp_path):
    (tmp_path / "bad.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"there is no text to train on; skipped 1 \(1 binary\), 1 byte; --data"):
        split(Corpus([str(tmp_path)]), lambda _: None)


def test_files_that_change_while_they_are_read_are_noticed(texts, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("text")
    corpus = split(Corpus([str(tmp_path)]), lambda _: None)
    for other in ("", "tent", "texts"):
        (tmp_path / "b.txt").write_text(other)
        with pytest.raises(DataError, match="the text changed"):
            list(corpus)
    (tmp_path / "b.txt").write_text("text")
    assert len(list(corpus)) == 3
    for name in "ac":
        (tmp_path / f"{name}.txt").unlink()
    one = split(Corpus([str(tmp_path)]), lambda _: None)
    (tmp_path / "b.txt").write_text("tent")
    with pytest.raises(DataError, match="the text changed"):
        list(one)


def test_a_sample_has_training_text_only_up_to_its_size_and_spread_by_hash(texts):
    corpus = split(Corpus([str(texts)]), lambda _: None)
    training = list(corpus.texts(heldout=False))
    assert list(corpus.sample(10**9)) == training
    sample = list(corpus.sample(1000))
    assert 1000 / 3 < sum(map(len, sample)) <= 1000
    assert all(any(text.startswith(part) for text in training) for part in sample)
    assert sample == list(corpus.sample(1000))
