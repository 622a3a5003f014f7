from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import ConfigError, pad
from prenorm.generation.padding import last_of_each_row

from ..oracle.inputs import normal

row_lists = st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=5), min_size=1, max_size=4)


@given(row_lists)
def test_the_real_tokens_are_the_rows_and_all_else_is_padding(rows):
    token_ids, segment_ids = pad(rows)
    assert token_ids.shape == (len(rows), max(map(len, rows)))
    real = torch.ones_like(token_ids, dtype=torch.bool) if segment_ids is None else segment_ids == 0
    assert [ids[is_real].tolist() for ids, is_real in zip(token_ids, real, strict=True)] == rows
    assert not token_ids[~real].any()
    assert (segment_ids is None) == (len(set(map(len, rows))) == 1)


def test_padding_stands_on_the_right_or_on_the_left():
    token_ids, segment_ids = pad([[1, 2, 3], [4]])
    assert token_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert segment_ids.tolist() == [[0, 0, 0], [0, -1, -1]]
    token_ids, segment_ids = pad([torch.tensor([1, 2, 3]), torch.tensor([4])], side="left")
    assert token_ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert segment_ids.tolist() == [[0, 0, 0], [-1, -1, 0]]


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_cannot_be_padded_is_refused():
    assert pad([])[0].shape == (0, 0)
    wrong: Any = (([[1], []], "row 1 is empty"), (["ab"], "must be token ids"), ([[0.5]], "integers"))
    for rows, message in wrong:
        with pytest.raises(ConfigError, match=message):
            pad(rows)
    with pytest.raises(ConfigError, match="side must be 'left' or 'right', not 'both'"):
        pad([[1]], side=cast(Any, "both"))


@given(row_lists)
def test_the_last_of_a_row_belongs_to_its_last_real_token(rows):
    token_ids, segment_ids = pad(rows)
    hidden = normal(*token_ids.shape, 3)
    last = last_of_each_row(hidden, segment_ids)
    for i, row in enumerate(rows):
        assert torch.equal(last[i], hidden[i, len(row) - 1])


@pytest.mark.parametrize("seq", [1, 4])
def test_without_padding_it_is_the_last_place(seq):
    hidden = normal(2, seq, 3)
    assert torch.equal(last_of_each_row(hidden, None), hidden[:, -1])
