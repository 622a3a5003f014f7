import torch
from tokenizers import Tokenizer, processors

from prenorm.training.batches import Batch, TrainingBatches
from prenorm.training.text_start import TextStart
from prenorm.training.tokenizer import end_of_text, load_tokenizer, start_of_text, tokenizer_files, train_tokenizer
from prenorm.training.tokens import prepare_text

from .conftest import text_of


def with_start(path, start="<s>"):
    """A tokenizer.json whose texts begin with a token of their own."""
    tokenizer = train_tokenizer([text_of(1, 300)], 290)
    tokenizer.add_special_tokens([start])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    tokenizer.save(str(path))
    return tokenizer


def test_a_text_begins_as_its_tokenizer_has_it_and_ends_with_the_end(tmp_path):
    file = tmp_path / "tokenizer.json"
    plain = with_start(file)
    expected = plain.encode("def f(x)").ids
    tokenizer = load_tokenizer(file)
    assert start_of_text(tokenizer) == ("<s>", plain.token_to_id("<s>"))
    assert end_of_text(tokenizer) == ("<|endoftext|>", 0)
    for name, content in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    again = load_tokenizer(file)
    assert (start_of_text(again), end_of_text(again)) == (start_of_text(tokenizer), end_of_text(tokenizer))
    assert Tokenizer.from_file(str(file)).encode("def f(x)").ids == expected


def test_only_the_end_before_a_text_becomes_its_first_token(tmp_path):
    with_start(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    start = start_of_text(tokenizer)[1]
    token_ids = torch.tensor([[0, 5, 0, 7, 0, 0], [4, 5, 0, 7, 8, 9]])
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 1]])
    batch = TextStart(tokenizer).put_into(Batch(token_ids, token_ids + 1, segments))
    assert batch.token_ids.tolist() == [[start, 5, start, 7, 0, start], [4, 5, 0, 7, 8, 9]]
    assert torch.equal(batch.targets, token_ids + 1)


def test_every_document_of_a_run_begins_with_the_first_token_and_no_target_is_one(tiny, tmp_path):
    with_start(tmp_path / "tokenizer.json")
    data = prepare_text(tiny(tokenizer=str(tmp_path / "tokenizer.json")), tmp_path / "text", lambda _: None)
    start = start_of_text(data.tokenizer)[1]
    batches = TrainingBatches(data.train, batch_size=4, context=16, seed=0)
    for step in range(1, 20):
        plain, batch = batches.at(step), TextStart(data.tokenizer).put_into(batches.at(step))
        assert torch.equal(batch.token_ids == start, plain.token_ids == 0)
        assert not bool((batch.targets == start).any())


def test_where_the_end_is_the_first_token_nothing_is_done(tiny, tmp_path):
    data = prepare_text(tiny(), tmp_path / "text", lambda _: None)
    batch = TrainingBatches(data.train, batch_size=4, context=16, seed=0).at(1)
    assert TextStart(data.tokenizer).put_into(batch) is batch
