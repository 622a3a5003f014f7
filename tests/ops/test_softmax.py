import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F

from ..oracle.inputs import dtypes, layouts, leadings, normal, seeds, sizes
from ..oracle.tolerance import array, assert_exact, assert_rounded_once


@given(leadings, sizes, sizes, st.sampled_from([-1, -2]), dtypes, layouts, seeds)
def test_it_is_exp_over_the_sum_of_exps(leading, rows, columns, dim, dtype, layout, seed):
    x = normal(*leading, 64, rows, columns, seed=seed, dtype=dtype, layout=layout)
    y = F.softmax(x, dim=dim)
    assert y.dtype == dtype
    exps = np.exp(array(x))
    assert_rounded_once(y, exps / exps.sum(axis=dim, keepdims=True))


@given(sizes, st.floats(-1e6, 1e6), seeds)
def test_adding_a_constant_changes_nothing(columns, constant, seed):
    x = normal(3, columns, seed=seed)
    shifted = (x + constant) - constant  # the shift itself rounds; what is left is compared
    assert_exact(F.softmax(shifted + constant), array(F.softmax(shifted)))


def test_scores_too_large_for_exp_give_the_limit():
    x = torch.tensor([[3e38, 0.0, -3e38], [-3e38, -3e38, -torch.inf]])
    assert F.softmax(x).tolist() == [[1, 0, 0], [0.5, 0.5, 0]]


def test_a_row_of_nothing_but_minus_infinity_gives_zeros_and_finite_gradients():
    x = normal(3, 4)
    x[1] = -torch.inf
    x.requires_grad_()
    y = F.softmax(x)
    (y * normal(3, 4, seed=1)).sum().backward()
    assert torch.equal(y[1], torch.zeros(4, dtype=y.dtype))
    assert torch.equal(x.grad[1], torch.zeros(4, dtype=y.dtype))
    assert_exact(y[[0, 2]], array(torch.softmax(x[[0, 2]], -1)))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_nothing_in_is_nothing_out(shape):
    assert F.softmax(torch.zeros(shape)).shape == shape


def test_its_gradients_are_right():
    assert torch.autograd.gradcheck(F.softmax, [normal(3, 4).requires_grad_()])
    assert torch.autograd.gradcheck(lambda x: F.softmax(x, dim=0), [normal(3, 4).requires_grad_()])
