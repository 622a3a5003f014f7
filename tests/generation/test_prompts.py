from typing import Any, cast

import pytest
import torch

from prenorm.errors import ConfigError, RangeError
from prenorm.generation.prompts import check_ids, check_room, endings, token_lists


@pytest.mark.parametrize(
    "prompts",
    [
        [[1, 2], [3, 4]],
        ((1, 2), (3, 4)),
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([[1, 2], [3, 4]], dtype=torch.int32),
        [torch.tensor([1, 2]), torch.tensor([3, 4])],
    ],
)
def test_lists_and_tensors_say_the_same(prompts):
    assert token_lists(prompts) == [[1, 2], [3, 4]]


def test_a_tensor_of_one_dimension_is_one_prompt():
    assert token_lists(torch.tensor([1, 2, 3])) == [[1, 2, 3]]


def test_no_prompts_are_no_rows():
    assert token_lists([]) == []
    assert token_lists(torch.zeros(0, 3, dtype=torch.int64)) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([1, 2, 3], r"prompt 0 must be a sequence of token ids, not 1; put the ids in a list: \[\[...\]\]"),
        (5, "prompt 0 must be a sequence of token ids, not 5"),
        ("def ", "must be token ids, not the text 'def '; prenorm.generation.text.TextGenerator takes text"),
        ([[1], "def "], "prompt 1 must be token ids, not the text"),
        ([[1], []], "at least one token, but prompt 1 is empty"),
        ([[1.5]], "must be a sequence of integers"),
        (torch.zeros(2, 3), "one row of integers, not a tensor of torch.float32"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), r"not a tensor of torch.int64 with shape \(3, 4\)"),
        (torch.tensor(3), r"not a tensor of torch.int64 with shape \(\)"),
        (torch.ones(2, dtype=torch.bool), "not a tensor of torch.bool"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_anything_else_is_refused_with_a_way_out(prompts, message):
    with pytest.raises(ConfigError, match=message):
        token_lists(prompts)


@pytest.mark.usefixtures("shapes_unchecked")
def test_messages_call_the_rows_by_the_name_that_the_caller_gave_them():
    with pytest.raises(ConfigError, match="a source must have at least one token, but source 1 is empty"):
        token_lists([[1], []], "source")
    with pytest.raises(ConfigError, match="source 0 must be token ids, not the text 'def '"):
        token_lists(cast(Any, "def "), "source")
    with pytest.raises(RangeError, match="those of source 1 go from 3 to 11 and vocab_size is 11"):
        check_ids([[1], [11, 3]], 11, "source")


def test_tensors_of_several_lengths_are_rows_of_several_lengths():
    assert token_lists([torch.tensor([1, 2]), torch.tensor([3])]) == [[1, 2], [3]]


def test_endings_are_each_end_of_text_id_and_each_stop_sequence():
    assert endings(None, ()) == []
    assert endings(3, ()) == [[3]]
    assert endings((3, 4), [[5, 6]]) == [[3], [4], [5, 6]]


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([[]], "a stop sequence must have at least one token id"),
        ([5, 6], r"put the ids in a list: \[\[...\]\]"),
        ("end", "must be token ids, not the text"),
        (["end"], "must be token ids, not the text"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_stop_sequences_that_are_none_are_refused(stop, message):
    with pytest.raises(ConfigError, match=message):
        endings(None, stop)


@pytest.mark.parametrize("ids", [[0, 11], [-1, 3]])
def test_ids_outside_the_vocabulary_are_refused_with_the_numbers(ids):
    message = f"those of prompt 1 go from {min(ids)} to {max(ids)} and vocab_size is 11; 10 is the largest"
    with pytest.raises(RangeError, match=message):
        check_ids([[10], ids], vocab_size=11)


def test_the_last_new_token_needs_no_room():
    check_room([[1], [1] * 8], max_new_tokens=3, max_seq_len=10)
    check_room([[1] * 10], max_new_tokens=1, max_seq_len=10)
    with pytest.raises(RangeError, match=r"prompt 1 has 8 tokens, max_new_tokens is 4 .* max_new_tokens=3 would do"):
        check_room([[1], [1] * 8], max_new_tokens=4, max_seq_len=10)


def test_a_prompt_that_is_too_long_by_itself_is_refused():
    with pytest.raises(RangeError, match="prompt 0 has 12 tokens and there is room for 10; leave out 2 of them"):
        check_room([[1] * 12], max_new_tokens=0, max_seq_len=10)
