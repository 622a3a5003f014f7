import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import PrenormError, RopeScaling

from ..oracle import formulas
from ..oracle.inputs import dtypes, integers, layouts, leadings, normal, seeds, seqs
from ..oracle.tolerance import array, assert_exact, assert_rounded_once

pairings = st.booleans()
half_dims = st.integers(1, 5)
LLAMA3: dict[str, Any] = {
    "kind": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_seq_len": 64,
}
LINEAR = {"kind": "linear", "factor": 2.5}


@given(leadings, seqs, half_dims, pairings, dtypes, layouts, seeds)
def test_each_pair_turns_as_a_complex_number(leading, seq, half_dim, interleaved, dtype, layout, seed):
    x = normal(*leading, 32, seq, 2 * half_dim, seed=seed, dtype=dtype, layout=layout)
    positions = integers(seq, limit=500, seed=seed)
    y = F.rope(x, positions, theta=300.0, interleaved=interleaved)
    assert y.dtype == dtype
    assert_rounded_once(y, formulas.rope(array(x), positions.numpy(), 300.0, interleaved=interleaved))


@given(leadings, seqs, half_dims, pairings, seeds)
def test_each_row_may_have_its_own_positions(leading, seq, half_dim, interleaved, seed):
    x, positions = normal(*leading, seq, 2 * half_dim, seed=seed), integers(*leading, seq, limit=500, seed=seed)
    assert_exact(
        F.rope(x, positions, interleaved=interleaved),
        formulas.rope(array(x), positions.numpy(), interleaved=interleaved),
    )


@given(seqs, half_dims, pairings, seeds)
def test_a_rotation_keeps_the_length_of_every_vector(seq, half_dim, interleaved, seed):
    x, positions = normal(seq, 2 * half_dim, seed=seed), integers(seq, limit=500, seed=seed)
    y = F.rope(x, positions, interleaved=interleaved)
    assert_exact(y.norm(dim=-1), array(x.norm(dim=-1)))


@given(seqs, half_dims, pairings, st.integers(0, 500), seeds)
def test_scores_see_only_the_distance_between_positions(seq, half_dim, interleaved, shift, seed):
    q, k = normal(seq, 2 * half_dim, seed=seed), normal(seq, 2 * half_dim, seed=seed + 1)
    here, there = integers(seq, limit=500, seed=seed), integers(seq, limit=500, seed=seed + 1)

    def scores(offset: int) -> torch.Tensor:
        turned = [F.rope(x, at + offset, interleaved=interleaved) for x, at in ((q, here), (k, there))]
        return turned[0] @ turned[1].T

    assert_exact(scores(shift), array(scores(0)))


def test_a_pair_turns_forwards_by_the_position_in_radians():
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for interleaved in (True, False):
        y = F.rope(x, torch.tensor([2]), interleaved=interleaved)
        assert_exact(y, [[math.cos(2), math.sin(2)]])


@given(seqs, half_dims, pairings, dtypes, seeds)
def test_position_zero_changes_no_bit(seq, half_dim, interleaved, dtype, seed):
    x = normal(seq, 2 * half_dim, seed=seed, dtype=dtype)
    assert torch.equal(F.rope(x, torch.zeros(seq, dtype=torch.int64), interleaved=interleaved), x)


@given(leadings, seqs, half_dims, pairings, seeds)
def test_positions_are_places_unless_given(leading, seq, half_dim, interleaved, seed):
    x = normal(*leading, seq, 2 * half_dim, seed=seed)
    assert torch.equal(F.rope(x, interleaved=interleaved), F.rope(x, torch.arange(seq), interleaved=interleaved))


@given(seqs, half_dims, seeds)
def test_the_pairings_differ_by_the_order_of_the_features_alone(seq, half_dim, seed):
    x = normal(seq, 2 * half_dim, seed=seed)
    order = torch.arange(2 * half_dim).view(half_dim, 2).T.flatten()  # 0 2 4 ... 1 3 5 ...
    assert torch.equal(F.rope(x, interleaved=True)[:, order], F.rope(x[:, order], interleaved=False))


@pytest.mark.parametrize("scaling", [LINEAR, LLAMA3], ids=["linear", "llama3"])
def test_scaled_frequencies_are_the_papers(scaling):
    x, positions = normal(9, 32), integers(9, limit=500)
    y = F.rope(x, positions, theta=100.0, scaling=RopeScaling(**scaling))
    assert_exact(y, formulas.rope(array(x), positions.numpy(), 100.0, scaling=scaling))


def test_the_llama3_example_keeps_stretches_and_blends():
    frequencies = [(formulas.frequency(i, 32, 100.0), formulas.frequency(i, 32, 100.0, LLAMA3)) for i in range(16)]
    ratios = np.array([scaled / plain for plain, scaled in frequencies])
    assert (ratios == 1).any()
    assert np.isclose(ratios, 1 / 8).any()
    assert ((ratios > 0.2) & (ratios < 0.9)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [0, 100_000, 10_000_000])
def test_far_positions_are_as_accurate_as_near_ones(first, dtype):
    x, positions = normal(64, 16, dtype=dtype), first + torch.arange(64)
    assert_rounded_once(F.rope(x, positions), formulas.rope(array(x), positions.numpy()))


def test_positions_may_be_int32():
    x = normal(3, 4)
    assert torch.equal(F.rope(x, torch.tensor([5, 0, 9], dtype=torch.int32)), F.rope(x, torch.tensor([5, 0, 9])))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("interleaved", [True, False])
def test_an_odd_head_dim_is_refused(interleaved):
    with pytest.raises(PrenormError, match="head_dim must be even"):
        F.rope(normal(2, 3), interleaved=interleaved)


def test_its_gradients_are_right():
    x, positions = normal(2, 3, 6).requires_grad_(), torch.tensor([4, 0, 4])
    for interleaved in (True, False):
        assert torch.autograd.gradcheck(lambda x, pairing=interleaved: F.rope(x, positions, interleaved=pairing), [x])
