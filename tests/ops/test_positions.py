import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm.ops.positions import sinusoidal_positions

from ..oracle import formulas
from ..oracle.inputs import integers, leadings, seeds
from ..oracle.tolerance import array, assert_exact, assert_rounded_once

widths = st.integers(1, 40).map(lambda pairs: 2 * pairs)


@given(leadings, widths, st.sampled_from([1, 100, 10**6]), seeds)
def test_each_position_is_the_papers_sines_and_cosines(leading, d_model, limit, seed):
    positions = integers(*leading, limit=limit, seed=seed)
    vectors = sinusoidal_positions(positions, d_model, dtype=torch.float64)
    assert vectors.shape == (*leading, d_model)
    for vector, position in zip(vectors.reshape(-1, d_model), positions.flatten().tolist(), strict=True):
        # Two ways to the same angle differ by its own rounding, which counts where the angle is large.
        wanted = formulas.sinusoid(position, d_model)
        assert np.abs(array(vector) - wanted).max() <= 8 * torch.finfo(torch.float64).eps * max(1, position)


def test_the_first_positions_are_what_they_are_on_paper():
    zero, one = sinusoidal_positions(torch.tensor([0, 1]), 4, dtype=torch.float64)
    assert zero.tolist() == [0, 1, 0, 1]
    assert_exact(one, [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_rounded_once_however_far_away(dtype):
    positions = torch.arange(10**6, 10**6 + 50)
    exact = array(sinusoidal_positions(positions, 32, dtype=torch.float64))
    vectors = sinusoidal_positions(positions, 32, dtype=dtype)
    assert vectors.dtype == dtype
    assert torch.equal(vectors, torch.from_numpy(exact).to(dtype))
    assert_rounded_once(vectors, exact)


def test_without_a_dtype_they_are_float32():
    assert sinusoidal_positions(torch.tensor([3], dtype=torch.int32), 6).dtype == torch.float32


@given(widths, st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_the_product_of_two_positions_tells_their_distance_alone(d_model, first, second, shift):
    a, b, c, d = sinusoidal_positions(
        torch.tensor([first, second, first + shift, second + shift]), d_model, dtype=torch.float64
    )
    rounding = 8 * torch.finfo(torch.float64).eps * 1000 * d_model  # of angles up to 1000, in d_model products
    assert abs(a @ b - c @ d) <= rounding
    assert abs(a @ a - d_model / 2) <= rounding


def test_they_run_on_the_meta_device():
    assert sinusoidal_positions(torch.zeros(2, 3, dtype=torch.int64, device="meta"), 4).shape == (2, 3, 4)
