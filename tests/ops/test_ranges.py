import pytest
import torch

from prenorm import RangeError
from prenorm.ops import ranges
from prenorm.ops.position_checks import check_length, check_positions
from prenorm.ops.ranges import check_range

LIMIT = 4


def check(values):
    check_range(values, LIMIT, what="the ids", rule="ids must be in [0, 4)")


@pytest.mark.parametrize("values", [[0], [3, 0, 3], [[1, 2], [2, 1]], []])
def test_values_inside_pass(values):
    check(torch.tensor(values, dtype=torch.int64))


@pytest.mark.parametrize(("values", "low", "high"), [([4], 4, 4), ([0, -1], -1, 0), ([[1, 9], [-3, 2]], -3, 9)])
def test_values_outside_raise_with_the_rule_and_the_numbers(values, low, high):
    message = rf"ids must be in \[0, 4\), but the ids go from {low} to {high}; 3 is the largest that can be used"
    with pytest.raises(RangeError, match=message):
        check(torch.tensor(values))


def test_where_values_are_not_at_hand_they_are_asserted_and_not_looked_at(monkeypatch):
    assert ranges.host_readable(torch.tensor([4]))
    monkeypatch.setattr(ranges, "host_readable", lambda values: False)
    check(torch.tensor([3]))
    with pytest.raises(RuntimeError, match=r"the ids: ids must be in \[0, 4\)"):
        check(torch.tensor([4]))


def test_a_range_error_is_both_a_value_error_and_an_index_error():
    for kind in (ValueError, IndexError):
        with pytest.raises(kind):
            check(torch.tensor([4]))


def test_shapes_without_values_are_not_checked():
    check(torch.empty(3, dtype=torch.int64, device="meta"))


def test_a_length_is_checked_by_the_position_of_its_last_token():
    check_length(8, 8)
    with pytest.raises(RangeError, match="9 tokens need positions up to 8; max_seq_len=9 would do"):
        check_length(9, 8)


def test_positions_name_max_seq_len():
    check_positions(torch.tensor([7]), 8)
    with pytest.raises(RangeError, match=r"positions must be in \[0, max_seq_len\) = \[0, 8\), but .* 7 to 8"):
        check_positions(torch.tensor([7, 8]), 8)
