import base64
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

from prenorm.errors import DataError
from prenorm.generation.text import END_OF_TEXT
from prenorm.training.tokenizer import (
    comes_back,
    encode,
    end_of_text,
    load_tokenizer,
    tokenizer_files,
    train_tokenizer,
    vocabulary_size,
)

from .conftest import text_of

TEXTS = [text_of(seed, 200) for seed in range(5)]
TOKENIZER = train_tokenizer(TEXTS, 300)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_exactly(text):
    (ids,) = encode(TOKENIZER, [text])
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\r\n\t\v\f", "\ufeff\u200d\u2028", "a  b\n\n\n    c", "12345 1_000", *TEXTS]
)
def test_odd_texts_come_back_exactly(text):
    (ids,) = encode(TOKENIZER, [text])
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_a_text_that_spells_the_end_of_text_does_not_end():
    name, end = end_of_text(TOKENIZER)
    assert name == END_OF_TEXT
    (ids,) = encode(TOKENIZER, [f"a{END_OF_TEXT}b"])
    assert end not in ids


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer(TEXTS, 300).to_str() == TOKENIZER.to_str()
    assert TOKENIZER.get_vocab_size() == 300


LONG = {
    "DNA": "".join(random.Random(0).choices("ACGT", k=3000)),
    "one letter": "a" * 3000,
    "CJK": "".join(map(chr, range(0x4E00, 0x4E00 + 3000))),
    "base64": base64.b64encode(random.Random(0).randbytes(3000)).decode(),
    "signs": "=-" * 1500,
    "a dotted name": "ab." * 1000,
    "spaces": " " * 3000,
    "line ends": "\n" * 3000,
    "emoji": "🙂🏽" * 1500,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_no_piece_is_longer_than_256_characters_and_no_token_crosses_one(text, tmp_path):
    tokenizer = train_tokenizer([text], 400)
    edges = [edges for _, edges in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert sum(end - start for start, end in edges) == len(text)
    assert max(end - start for start, end in edges) <= 256
    inside = {place for start, end in edges for place in range(start + 1, end)}
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert all(inside >= {*range(start + 1, end)} for start, end in whole.offsets)
    (ids,) = encode(tokenizer, [text])
    assert ids == whole.ids
    for name, content in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    opened = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert opened.encode(text, add_special_tokens=False).ids == ids
    assert AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)["input_ids"] == ids


def test_where_no_piece_is_that_long_the_cut_changes_nothing(monkeypatch):
    monkeypatch.setattr("prenorm.training.tokenizer.MAX_PIECE_CHARACTERS", 100_000)
    uncut = train_tokenizer(TEXTS, 300)
    assert json.loads(uncut.to_str())["model"] == json.loads(TOKENIZER.to_str())["model"]
    assert encode(uncut, TEXTS) == encode(TOKENIZER, TEXTS)


@pytest.mark.slow
def test_a_million_letters_on_one_line_train_a_tokenizer_in_seconds():
    """Without the cut this takes some three minutes for the DNA alone."""
    for alphabet in ("ACGT", "".join(map(chr, range(0x4E00, 0x5A00)))):
        text = "".join(random.Random(0).choices(alphabet, k=1_000_000))
        start = time.perf_counter()
        tokenizer = train_tokenizer([text], 1024)
        assert tokenizer.decode(encode(tokenizer, [text])[0]) == text
        assert time.perf_counter() - start < 60


def test_a_prompt_starts_with_the_end_of_text_as_in_training():
    _, end = end_of_text(TOKENIZER)
    assert TOKENIZER.encode("def f").ids == [end, *encode(TOKENIZER, ["def f"])[0]]


def test_the_files_open_here_and_with_hugging_face(tmp_path):
    for name, content in tokenizer_files(TOKENIZER).items():
        (tmp_path / name).write_bytes(content)
    ours, theirs = load_tokenizer(tmp_path / "tokenizer.json"), AutoTokenizer.from_pretrained(tmp_path)
    prompt = "def f(x) :\n\n    return  x , 42"
    assert ours.to_str() == TOKENIZER.to_str()
    assert theirs(prompt)["input_ids"] == ours.encode(prompt).ids
    assert theirs.decode(theirs(prompt)["input_ids"], skip_special_tokens=True) == prompt
    assert theirs.eos_token_id == end_of_text(TOKENIZER)[1]


def test_another_tokenizer_is_used_with_its_own_end_and_without_its_truncation(tmp_path):
    other = json.loads(TOKENIZER.to_str().replace(END_OF_TEXT, "</s>"))
    other["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "t.json").write_text(json.dumps(other))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    assert end_of_text(tokenizer)[0] == "</s>"
    assert encode(tokenizer, TEXTS) == encode(TOKENIZER, TEXTS)


def test_what_a_foreign_tokenizer_has_no_token_for_is_refused_and_what_it_loses_is_known():
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "</s>": 1}, unk_token="?"))
    with pytest.raises(DataError, match="cannot encode this text"):
        encode(tokenizer, ["b"])
    assert vocabulary_size(tokenizer) == 2
    assert comes_back(tokenizer, encode(tokenizer, ["a"])[0], "a")
    tokenizer.normalizer = normalizers.Lowercase()
    assert not comes_back(tokenizer, encode(tokenizer, ["A"])[0], "A")


def test_a_file_that_is_no_tokenizer_or_has_no_end_is_refused(tmp_path):
    (tmp_path / "text.json").write_text("{}")
    Tokenizer(models.BPE()).save(str(tmp_path / "endless.json"))
    for name, message in {
        "missing.json": "missing.json cannot be read",
        "text.json": "text.json is not a tokenizer.json",
        "endless.json": "endless.json must have a token that ends a text",
    }.items():
        with pytest.raises(DataError, match=message):
            load_tokenizer(tmp_path / name)
