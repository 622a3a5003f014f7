import json
import re
import shutil

import numpy as np
import pytest

from prenorm.errors import DataError
from prenorm.training.batches import TrainingBatches
from prenorm.training.config import TrainConfig
from prenorm.training.data import encoding, side
from prenorm.training.data.corpus import Corpus
from prenorm.training.data.folder import read_folder
from prenorm.training.data.split import Rule, Survey, hashes_of
from prenorm.training.tokenizer import end_of_text, load_tokenizer, tokenizer_files, train_tokenizer
from prenorm.training.tokens import TextData, check_tokenizer, prepare_text, read_tokens

from .conftest import text_of


def documents_of(data, stream):
    """What the stream holds between its END tokens."""
    pairs = zip(stream.starts[:-1], stream.starts[1:], strict=True)
    return [data.tokenizer.decode(stream.tokens[a + 1 : b].tolist(), skip_special_tokens=False) for a, b in pairs]


def side_of(texts, heldout):
    """The texts below a folder that are on one side."""
    corpus, survey = Corpus([str(texts)]), Survey(Rule())
    parts = [part for document in corpus for part in survey.add(document, hashes_of(document))]
    return [document.content for document, side in parts if side == heldout]


def test_the_streams_decode_to_the_documents_byte_for_byte(tiny, texts, tmp_path):
    data = prepare_text(tiny(), tmp_path, lambda _: None)
    assert documents_of(data, data.train) == side_of(texts, False)
    assert documents_of(data, data.heldout) == side_of(texts, True)
    assert data.heldout_text.bytes == sum(len(text.encode()) for text in side_of(texts, True))


def test_every_document_has_an_end_before_and_after_it_and_none_within(tiny, tmp_path):
    data = prepare_text(tiny(), tmp_path, lambda _: None)
    _, end = end_of_text(data.tokenizer)
    assert data.end_ids == (end,)
    for stream in (data.train, data.heldout):
        assert np.flatnonzero(stream.tokens[:] == end).tolist() == stream.starts.tolist()
        assert stream.starts[-1] == stream.num_targets == stream.num_tokens


def test_the_text_is_read_once_and_then_from_the_run(tiny, texts, tmp_path, said):
    first = prepare_text(tiny(), tmp_path, said.append)
    assert said != []
    again = prepare_text(tiny(data=["/gone"]), tmp_path, lambda _: pytest.fail("nothing is read again"))
    assert np.array_equal(first.train.tokens[:], again.train.tokens[:])
    assert np.array_equal(first.heldout.starts, again.heldout.starts)
    assert first.heldout_text == again.heldout_text
    assert first.tokenizer.to_str() == again.tokenizer.to_str()
    assert read_tokens(tmp_path).heldout_text == first.heldout_text
    assert read_tokens(tmp_path).sha256 == first.sha256
    other = prepare_text(tiny(data=[str(texts / "deep")]), tmp_path / "other", said.append)
    assert other.sha256 != first.sha256


def test_a_run_inside_its_own_text_does_not_read_itself(tiny, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name} " * 20)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("settings")
    data = prepare_text(tiny(data=[str(tmp_path)]), run, lambda _: None)
    assert len(data.train.starts) - 1 + len(data.heldout.starts) - 1 == 3


def test_slices_and_shards_change_no_text_and_no_batch(tiny, tmp_path, monkeypatch):
    def batches(data):
        made = TrainingBatches(data.train, batch_size=4, context=16, seed=0)
        return [tensor.tolist() for step in (1, 2, 9) for tensor in made.at(step)]

    whole = prepare_text(tiny(), tmp_path / "whole", lambda _: None)
    monkeypatch.setattr(side, "SHARD_TOKENS", 100)
    sharded = prepare_text(tiny(), tmp_path / "sharded", lambda _: None)
    assert (tmp_path / "sharded" / "data" / "train-00003.npy").exists()
    assert batches(sharded) == batches(whole)
    monkeypatch.setattr(encoding, "SLICE_CHARACTERS", 50)
    sliced = prepare_text(tiny(), tmp_path / "sliced", lambda _: None)
    assert documents_of(sliced, sliced.train) == documents_of(whole, whole.train)


def test_a_large_vocabulary_is_stored_in_four_bytes(tiny, tmp_path, monkeypatch):
    small = prepare_text(tiny(), tmp_path / "small", lambda _: None)
    monkeypatch.setattr(side, "TWO_BYTES", 100)
    large = prepare_text(tiny(), tmp_path / "large", lambda _: None)
    assert (small.train.tokens[:].itemsize, large.train.tokens[:].itemsize) == (2, 4)
    assert np.array_equal(small.train.tokens[:], large.train.tokens[:])


def test_a_given_tokenizer_is_used_and_what_it_changes_is_said(tiny, tmp_path, said):
    tokenizer = json.loads(tokenizer_files(train_tokenizer(["abc"], 257))["tokenizer.json"])
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "text.txt").write_text("An UPPER text.\n" * 20)
    for number, path in enumerate((tmp_path / "tokenizer.json", tmp_path)):
        config = tiny(tokenizer=str(path), data=[str(tmp_path / "text.txt")])
        data = prepare_text(config, tmp_path / f"run{number}", said.append)
        assert data.tokenizer.get_vocab_size() == 257
        assert "loses part of 1 held-out documents" in said[-1]


def test_another_tokenizer_in_the_folder_of_a_run_is_refused(tiny, tmp_path):
    prepare_text(tiny(), tmp_path, lambda _: None)
    tokenizer = tmp_path / "tokenizer.json"
    text = tokenizer.read_bytes()
    tokenizer.write_bytes(text + b" ")
    with pytest.raises(DataError, match=r"tokenizer\.json is not that in .*data; delete it, and it is written again"):
        check_tokenizer(tmp_path)
    tokenizer.unlink()
    prepare_text(tiny(), tmp_path, lambda _: None)
    assert tokenizer.read_bytes() == text


def test_text_too_short_for_one_context_is_refused_with_the_numbers(tiny, texts, tmp_path):
    with pytest.raises(DataError, match=r"must have at least 100,000 tokens, but has [\d,]+; .* smaller --context"):
        prepare_text(tiny(context=100_000), tmp_path, lambda _: None)


@pytest.mark.parametrize("name", ["train-00000.npy", "heldout-starts.npy", "data.json", "tokenizer.json"])
def test_a_damaged_store_is_noticed(tiny, tmp_path, name):
    prepare_text(tiny(), tmp_path, lambda _: None)
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"{name} .*start the run again"):
        prepare_text(tiny(), tmp_path, lambda _: None)


def prepared(tiny, folder, texts, *, seed=0, **fields):
    """A folder of tokens of some texts, each a line, as `prenorm data` leaves it."""
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare_text(tiny(data=[str(path)], context=2, **fields), folder, lambda _: None)
    return folder / "data"


@pytest.fixture
def two_folders(tiny, tmp_path):
    """Two folders of tokens of one tokenizer, whose texts tell them apart."""
    first = prepared(tiny, tmp_path / "one", [f"one {text_of(seed, 20)}" for seed in range(60)])
    second = prepared(tiny, tmp_path / "two", [f"two {text_of(seed, 9)}" for seed in range(50)], tokenizer=str(first))
    return first, second


def test_a_run_reads_folders_of_tokens_where_they_lie_as_if_they_were_one(tiny, tmp_path, two_folders, said):
    one, both = (
        prepare_text(tiny(data=[str(path) for path in paths]), tmp_path / f"run{len(paths)}", said.append)
        for paths in (two_folders[:1], two_folders)
    )
    assert said[0].startswith(f"{two_folders[0]}: Read 60 documents")
    assert [path.name for path in (tmp_path / "run2" / "data").iterdir()] == ["prepared.json"]
    assert load_tokenizer(tmp_path / "run2").to_str() == one.tokenizer.to_str()
    second = prepare_text(tiny(data=[str(two_folders[1])]), tmp_path / "run", lambda _: None)
    for name in ("train", "heldout"):
        parts = [documents_of(data, getattr(data, name)) for data in (one, second)]
        assert documents_of(both, getattr(both, name)) == parts[0] + parts[1]
    assert both.heldout_text.bytes == one.heldout_text.bytes + second.heldout_text.bytes
    origin = both.train.origins(both.train.starts[-2:-1])[0]
    assert origin.path == str(tmp_path / "two.jsonl")


def test_copies_between_folders_of_tokens_are_said(tiny, tmp_path, said):
    texts = [text_of(seed, 20) for seed in range(60)]
    first = prepared(tiny, tmp_path / "one", texts, heldout_one_in=2)
    second = prepared(tiny, tmp_path / "two", texts, tokenizer=str(first), heldout_one_in=20)
    prepare_text(tiny(data=[str(first), str(second)]), tmp_path / "run", said.append)
    heldout, others = ({*map(int, read_folder(folder).heldout.text_hashes)} for folder in (first, second))
    assert others < heldout
    (line,) = [line for line in said if "exact cop" in line]
    found = re.match(rf"{second}: (\d+) training documents are exact copies .* such as (.*) and (.*): they stay", line)
    assert int(found[1]) == len(heldout - others)
    one, other = (int(found[number].rpartition(", line ")[2]) for number in (2, 3))
    assert texts[one - 1] == texts[other - 1]
    assert (tmp_path / "run" / "data" / "prepared.json").read_text().count("exact copies") == 1


def test_a_folder_of_tokens_that_is_named_twice_is_refused(tiny, tmp_path, two_folders):
    first, second = two_folders
    again = first.parent / "." / first.name / ".." / first.name
    with pytest.raises(DataError, match=r"each folder of tokens is named once, but .* twice; --data-weights"):
        prepare_text(tiny(data=[str(first), str(second), str(again)]), tmp_path / "run", lambda _: None)


def test_a_run_goes_on_only_with_the_tokens_that_it_began_with(tiny, tmp_path, two_folders):
    config = tiny(data=[str(two_folders[0])])
    for _ in range(2):
        prepare_text(config, tmp_path / "run", lambda _: None)
    shutil.rmtree(two_folders[0])
    shutil.copytree(two_folders[1], two_folders[0])
    with pytest.raises(DataError, match="goes on with the tokens that it began with"):
        prepare_text(config, tmp_path / "run", lambda _: None)


def test_tokens_of_two_tokenizers_and_tokens_beside_text_are_refused(tiny, tmp_path, two_folders):
    other = prepared(tiny, tmp_path / "other", ["abc " * 20, "def " * 20, "ghi " * 20])
    with pytest.raises(DataError, match=r"must be of one tokenizer, but those in .*one/data are not"):
        prepare_text(tiny(data=[str(two_folders[0]), str(other)]), tmp_path / "run", lambda _: None)
    with pytest.raises(DataError, match="must be of one tokenizer"):
        prepare_text(tiny(data=[str(two_folders[0])], tokenizer=str(other)), tmp_path / "run", lambda _: None)
    with pytest.raises(DataError, match=r"either text or folders of tokens, .* prenorm data .*one\.jsonl --tokenizer"):
        prepare_text(tiny(data=[str(other), str(tmp_path / "one.jsonl")]), tmp_path / "run", lambda _: None)


def shares(data: TextData) -> dict[str, float]:
    """The share of the tokens that are read of each file, over many batches."""
    batches, counted = TrainingBatches(data.train, batch_size=4, context=16, seed=0), {}
    for step in range(1, 51):
        for row in range(4):
            for origin in batches.documents(step, row):
                counted[origin.path] = counted.get(origin.path, 0) + origin.tokens
    return {path.rpartition("/")[2]: number / sum(counted.values()) for path, number in counted.items()}


def test_weights_are_the_shares_of_the_tokens_that_are_read(tiny, tmp_path, two_folders):
    files = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    raw = prepare_text(tiny(data=files, data_weights=[1.0, 3.0]), tmp_path / "raw", lambda _: None)
    folders = prepare_text(
        tiny(data=[str(path) for path in two_folders], data_weights=[1.0, 3.0]), tmp_path / "folders", lambda _: None
    )
    again = prepare_text(tiny(data=[str(tmp_path / "raw" / "data")]), tmp_path / "again", lambda _: None)
    other = prepare_text(
        tiny(data=[str(tmp_path / "raw" / "data")], data_weights=[1.0, 1.0]), tmp_path / "other", lambda _: None
    )
    kept = read_tokens(tmp_path / "folders")
    for data, share in ((raw, 0.25), (folders, 0.25), (kept, 0.25), (again, 0.25), (other, 0.5)):
        assert shares(data) == {"one.jsonl": pytest.approx(share), "two.jsonl": pytest.approx(1 - share)}


def test_weights_within_folders_are_taken_with_those_of_the_folders(tiny, tmp_path, two_folders):
    files = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    mixed = tmp_path / "mixed"
    prepare_text(tiny(data=files, data_weights=[1.0, 3.0], tokenizer=str(two_folders[0])), mixed, lambda _: None)
    paths = [str(mixed / "data"), str(two_folders[0])]
    with pytest.raises(DataError, match="weights within need weights, too"):
        prepare_text(tiny(data=paths), tmp_path / "none", lambda _: None)
    data = prepare_text(tiny(data=paths, data_weights=[1.0, 1.0]), tmp_path / "run", lambda _: None)
    assert shares(data) == {"one.jsonl": pytest.approx(0.625), "two.jsonl": pytest.approx(0.375)}


def test_weights_that_are_not_one_a_source_are_refused(tiny, tmp_path, two_folders):
    for data in ([str(tmp_path / "one.jsonl")], [str(path) for path in two_folders]):
        with pytest.raises(DataError, match="a weight for each source, but there are 3 weights"):
            prepare_text(tiny(data=data, data_weights=[1.0, 2.0, 3.0]), tmp_path / "run", lambda _: None)
    assert isinstance(tiny(data_weights=[1.0, 2.0]), TrainConfig)
