import math

import pytest
import torch
from hypothesis import given

import prenorm.functional as F

from ..oracle import formulas
from ..oracle.inputs import dtypes, layouts, leadings, normal, seeds, sizes
from ..oracle.tolerance import array, assert_exact, assert_rounded_once


@given(leadings, sizes, dtypes, layouts, seeds)
def test_it_is_x_times_the_normal_distribution_function(leading, size, dtype, layout, seed):
    x = 3 * normal(*leading, 64, size, seed=seed, dtype=dtype, layout=layout)
    y = F.gelu(x)
    assert y.dtype == dtype
    assert_rounded_once(y, formulas.gelu(array(x)))


def test_it_is_the_exact_form_and_not_the_tanh_approximation():
    # The two differ by 1e-3 at most: Hendrycks and Gimpel 2016, section 2.
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
    assert_exact(F.gelu(x), [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    tanh = torch.nn.functional.gelu(x, approximate="tanh")
    assert ((F.gelu(x) - tanh).abs() > 1e-5).all()


def test_far_below_zero_it_is_zero_and_far_above_it_is_x():
    assert F.gelu(torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30])).tolist() == [0, 0, 0, 50, torch.tensor(1e30).item()]


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_a_single_number_and_no_numbers_are_fine(shape):
    assert F.gelu(torch.zeros(shape)).shape == shape


def test_its_gradients_are_right():
    x = 2 * normal(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(F.gelu, x)
    assert torch.autograd.gradgradcheck(F.gelu, x)
