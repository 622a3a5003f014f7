import pytest
import torch
from hypothesis import given

from prenorm import ConfigError, Embedding, RangeError, ShapeError

from ..oracle.inputs import integers, leadings, seeds


@given(leadings, seeds)
def test_each_id_gives_its_row(leading, seed):
    layer, ids = Embedding(5, 3), integers(*leading, limit=5, seed=seed)
    rows = layer(ids)
    assert rows.shape == (*leading, 3)
    for row, identity in zip(rows.reshape(-1, 3), ids.flatten().tolist(), strict=True):
        assert torch.equal(row, layer.weight[identity])


def test_a_row_gets_the_gradients_of_all_its_tokens():
    layer = Embedding(4, 2)
    layer(torch.tensor([1, 3, 1])).sum().backward()
    assert layer.weight.grad[:, 0].tolist() == [0, 2, 0, 1]


def test_rows_start_as_a_standard_normal_cut_at_three():
    weight = Embedding(100, 60).weight
    assert weight.abs().max() <= 3
    assert abs(weight.std().item() / 0.9866 - 1) < 5 / (2 * weight.numel()) ** 0.5


@pytest.mark.parametrize(("ids", "low", "high"), [([5], 5, 5), ([0, -1], -1, 0), ([[2, 7]], 2, 7)])
def test_an_id_outside_the_vocabulary_is_refused_with_the_numbers(ids, low, high):
    message = rf"token ids must be in \[0, vocab_size\) = \[0, 5\), but the token ids go from {low} to {high}"
    with pytest.raises(RangeError, match=message):
        Embedding(5, 3)(torch.tensor(ids))


def test_ids_may_be_int32():
    layer = Embedding(5, 3)
    assert torch.equal(layer(torch.tensor([4, 0], dtype=torch.int32)), layer(torch.tensor([4, 0])))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.int16])
def test_ids_of_another_dtype_are_refused(dtype):
    with pytest.raises(ShapeError, match=f"token ids must be int64 or int32, but they are {dtype}"):
        Embedding(5, 3)(torch.ones(2, dtype=dtype))


def test_sizes_that_are_no_sizes_are_refused_by_name():
    with pytest.raises(ConfigError, match="vocab_size must be"):
        Embedding(0, 3)
    with pytest.raises(ConfigError, match="d_model must be"):
        Embedding(3, 0)
