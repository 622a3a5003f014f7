import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

from prenorm.errors import DataError
from prenorm.training.tokenizer import (
    END_OF_TEXT,
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
    assert comes_back(tokenizer, "a")
    tokenizer.normalizer = normalizers.Lowercase()
    assert not comes_back(tokenizer, "A")


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
