import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenorm.errors import DataError
from prenorm.training.data import formats
from prenorm.training.data.corpus import Corpus
from prenorm.training.data.split import Rule, Survey, hashes_of, held_out, look_through


def parts(corpus, rule=None):
    """All documents or parts of them, in order, with their side."""
    rule = rule or look_through(corpus, Rule(), 1)[0].rule
    survey = Survey(rule)
    return [part for document in corpus for part in survey.add(document, hashes_of(document))]


def sides(folder):
    return {document.name: heldout for document, heldout in parts(Corpus([str(folder)]))}


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(2, 50))
def test_the_side_is_the_hash_of_the_name(name, one_in):
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    assert held_out(name, one_in) == (number % one_in == 0)


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


def test_a_line_stays_on_its_side_whatever_its_number_and_its_file(tmp_path):
    lines = [json.dumps({"text": f"text {number}"}) + "\n" for number in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    before = {document.content: heldout for document, heldout in parts(Corpus([str(tmp_path / "a.jsonl")]))}
    assert 2 < sum(before.values()) < 30
    (tmp_path / "b").mkdir()
    for number in range(3):
        (tmp_path / "b" / f"{number}.jsonl").write_text("\n" + "".join(reversed(lines[number::3])))
    after = {document.content: heldout for document, heldout in parts(Corpus([str(tmp_path / "b")]))}
    assert after == before


def test_both_sides_together_are_every_document_once(texts):
    both = sorted(document.content for document, _ in parts(Corpus([str(texts)])))
    assert both == sorted(document.content for document in Corpus([str(texts)]))


def test_where_the_hash_leaves_a_side_empty_one_document_is_held_out(tmp_path):
    for name in "def":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    assert sorted(sides(tmp_path).values()) == [False, False, True]


def test_a_path_with_a_weight_keeps_something_to_train_on(tmp_path):
    for number in range(30):
        (tmp_path / f"file{number}.py").write_text("text")
    paths = [str(tmp_path), str(tmp_path / "file3.py")]  # the second is held out by its name
    (tmp_path / "file3.py").rename(tmp_path.parent / "file3.py")
    paths[1] = str(tmp_path.parent / "file3.py")
    plain, weighted = (look_through(Corpus(paths), Rule(each_root=each), 1)[0].rule for each in (False, True))
    assert plain == Rule()
    assert weighted.trained == {1}
    sides = {document.name: heldout for document, heldout in parts(Corpus(paths), weighted)}
    assert not sides["file3.py"]
    assert sides["file6.py"]


@pytest.mark.parametrize("large", [1 << 22, 1000])
def test_the_tail_of_a_single_document_is_held_out(tmp_path, monkeypatch, large):
    monkeypatch.setattr(formats, "LARGE", large)
    monkeypatch.setattr(formats, "CHUNK", 700)
    text = "".join(f"line {number} äöü\n" for number in range(1000))
    (tmp_path / "one.txt").write_text(text)
    (start, first), (end, second) = parts(Corpus([str(tmp_path / "one.txt")]))
    assert (first, second) == (False, True)
    start, end = ("".join(formats.chunks(part.content)) for part in (start, end))
    assert start + end == text
    assert end.startswith("line 9")
    assert 0.04 < len(end) / len(text) < 0.06


def test_a_single_conversation_cannot_be_split(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "one.jsonl").write_text(json.dumps({"messages": messages}))
    with pytest.raises(DataError, match="only one conversation"):
        parts(Corpus([str(tmp_path)]))


def test_a_survey_tells_texts_and_orders_apart(tmp_path):
    def sha256(*texts):
        for number, text in enumerate(texts):
            (tmp_path / f"{number}.txt").write_text(text)
        return look_through(Corpus([str(tmp_path)]), Rule(), 1)[0].sha256

    assert sha256("a", "b") == sha256("a", "b")
    assert len({sha256("a", "b"), sha256("b", "a"), sha256("a", "c")}) == 3


def test_a_sample_has_training_text_only_up_to_its_size_and_spread_by_hash(texts):
    corpus = Corpus([str(texts)])
    training = [document.content for document, heldout in parts(corpus) if not heldout]

    def sample(max_bytes):
        return list(look_through(corpus, Rule(), max_bytes)[1].texts())

    assert sample(10**9) == training
    small = sample(1000)
    assert 1000 / 3 < sum(map(len, small)) <= 1000
    assert all(any(text.startswith(part) for text in training) for part in small)
    assert small == sample(1000)
    assert len(small) < len(sample(2000))
