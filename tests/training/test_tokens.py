import json

import numpy as np
import pytest

from prenorm.errors import CheckpointError, DataError
from prenorm.training import tokens
from prenorm.training.corpus import Corpus
from prenorm.training.split import split
from prenorm.training.tokenizer import end_of_text, tokenizer_files, train_tokenizer
from prenorm.training.tokens import prepare_text


def documents_of(data, stream):
    """What the stream holds between its END tokens."""
    pairs = zip(stream.starts[:-1], stream.starts[1:], strict=True)
    return [data.tokenizer.decode(stream.tokens[a + 1 : b].tolist(), skip_special_tokens=False) for a, b in pairs]


def test_the_streams_decode_to_the_documents_byte_for_byte(tiny, texts, tmp_path):
    data = prepare_text(tiny(), tmp_path, lambda _: None)
    corpus = split(Corpus([str(texts)]), lambda _: None)
    assert documents_of(data, data.train) == list(corpus.texts(heldout=False))
    assert documents_of(data, data.heldout) == list(corpus.texts(heldout=True))
    assert data.heldout_text.bytes == sum(len(text.encode()) for text in corpus.texts(heldout=True))


def test_every_document_has_an_end_before_and_after_it_and_none_within(tiny, tmp_path):
    data = prepare_text(tiny(), tmp_path, lambda _: None)
    _, end = end_of_text(data.tokenizer)
    for stream in (data.train, data.heldout):
        assert np.flatnonzero(stream.tokens == end).tolist() == stream.starts.tolist()
        assert stream.starts[-1] == stream.num_targets


def test_the_text_is_read_once_and_then_from_the_run(tiny, texts, tmp_path, said):
    first = prepare_text(tiny(), tmp_path, said.append)
    assert said != []
    again = prepare_text(tiny(data=["/gone"]), tmp_path, lambda _: pytest.fail("nothing is read again"))
    assert np.array_equal(first.train.tokens, again.train.tokens)
    assert np.array_equal(first.heldout.starts, again.heldout.starts)
    assert first.heldout_text == again.heldout_text
    assert first.tokenizer.to_str() == again.tokenizer.to_str()


def test_a_run_inside_its_own_text_does_not_read_itself(tiny, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name} " * 20)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("settings")
    data = prepare_text(tiny(data=[str(tmp_path)]), run, lambda _: None)
    assert len(data.train.starts) - 1 + len(data.heldout.starts) - 1 == 3


def test_slices_change_no_text(tiny, tmp_path, monkeypatch):
    whole = prepare_text(tiny(), tmp_path / "whole", lambda _: None)
    monkeypatch.setattr(tokens, "SLICE_CHARACTERS", 50)
    sliced = prepare_text(tiny(), tmp_path / "sliced", lambda _: None)
    assert documents_of(sliced, sliced.train) == documents_of(whole, whole.train)


def test_a_large_vocabulary_is_stored_in_four_bytes(tiny, tmp_path, monkeypatch):
    small = prepare_text(tiny(), tmp_path / "small", lambda _: None)
    monkeypatch.setattr(tokens, "TWO_BYTES", 100)
    large = prepare_text(tiny(), tmp_path / "large", lambda _: None)
    assert (small.train.tokens.itemsize, large.train.tokens.itemsize) == (2, 4)
    assert np.array_equal(small.train.tokens, large.train.tokens)


def test_a_given_tokenizer_is_used_and_what_it_changes_is_said(tiny, tmp_path, said):
    tokenizer = json.loads(tokenizer_files(train_tokenizer(["abc"], 257))["tokenizer.json"])
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "t.json").write_text(json.dumps(tokenizer))
    (tmp_path / "text.txt").write_text("An UPPER text.\n" * 20)
    config = tiny(tokenizer=str(tmp_path / "t.json"), data=[str(tmp_path / "text.txt")])
    data = prepare_text(config, tmp_path / "run", said.append)
    assert data.tokenizer.get_vocab_size() == 257
    assert "loses part of 1 held-out documents" in said[-1]


def test_text_too_short_for_one_context_is_refused_with_the_numbers(tiny, texts, tmp_path):
    with pytest.raises(DataError, match=r"must have at least 100,000 tokens, but has [\d,]+; .* smaller --context"):
        prepare_text(tiny(context=100_000), tmp_path, lambda _: None)


@pytest.mark.parametrize("name", ["train.bin", "heldout_starts.npy"])
def test_a_damaged_store_is_noticed(tiny, tmp_path, name):
    prepare_text(tiny(), tmp_path, lambda _: None)
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match="start the run again"):
        prepare_text(tiny(), tmp_path, lambda _: None)
