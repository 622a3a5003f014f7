import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prenorm.errors import DataError
from prenorm.training.data import mixing
from prenorm.training.data.mixing import Mixing

weights = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=6)


@settings(max_examples=30)
@given(weights, st.integers(0, 300_000))
def test_every_source_has_had_its_share_after_any_number_of_rows(weights, rows):
    counts = Mixing(weights).counts(rows)
    assert counts.sum() == rows
    exact = np.array(weights) / sum(weights) * rows
    assert np.abs(counts - exact).max() <= len(weights) * (1 + rows / mixing.ROUND)


@settings(max_examples=30)
@given(weights, st.integers(0, 200_000))
def test_the_rows_of_a_source_are_numbered_without_a_gap(weights, start):
    made = Mixing(weights)
    sources, numbers = made.at(np.arange(start, start + 500))
    for source, first in enumerate(made.counts(start)):
        mine = numbers[sources == source]
        assert mine.tolist() == list(range(int(first), int(first) + len(mine)))


def test_a_single_source_has_every_row():
    sources, numbers = Mixing([0.3]).at(np.arange(100))
    assert not sources.any()
    assert numbers.tolist() == list(range(100))


def test_a_share_that_would_come_to_nothing_is_refused():
    with pytest.raises(DataError, match="no weight may be less than 1/65536 of their sum"):
        Mixing([1.0, 1e-7])
