import math

import pytest
import torch
from hypothesis import given

import prenorm.functional as F

from ..oracle import formulas
from ..oracle.inputs import dtypes, layouts, leadings, normal, seeds, sizes
from ..oracle.tolerance import array, assert_accurate, assert_close, assert_exact, assert_rounded_once


@given(leadings, sizes, dtypes, layouts, seeds)
def test_it_is_the_papers_formula(leading, d_model, dtype, layout, seed):
    x = normal(*leading, 64, d_model, seed=seed, dtype=dtype, layout=layout)
    weight = normal(d_model, seed=seed + 1, dtype=dtype, layout=layout)
    y = F.rms_norm(x, weight, eps=1e-3)
    assert y.dtype == dtype
    assert_rounded_once(y, formulas.rms_norm(array(x), array(weight), 1e-3))


@given(leadings, sizes, seeds)
def test_every_vector_comes_out_with_root_mean_square_one(leading, d_model, seed):
    x = normal(*leading, 3, d_model, seed=seed)
    squares = F.rms_norm(x, torch.ones(d_model, dtype=x.dtype), eps=1e-300).square().mean(-1)
    assert_close(squares, array(torch.ones_like(squares)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_as_accurate_as_pytorchs(dtype):
    x, weight = normal(64, 96, dtype=dtype), normal(96, seed=1, dtype=dtype)
    pytorchs = torch.nn.functional.rms_norm(x, (96,), weight, eps=1e-6)
    assert_accurate(F.rms_norm(x, weight), formulas.rms_norm(array(x), array(weight)), pytorchs)


def test_eps_stands_inside_the_root():
    x = torch.full((4,), 1e-3, dtype=torch.float64)  # mean square 1e-6, as much as eps: y = 1 / sqrt(2)
    y = F.rms_norm(x, torch.ones(4, dtype=torch.float64), eps=1e-6)
    assert_exact(y, [math.sqrt(0.5)] * 4)


def test_the_result_is_rounded_once_and_last():
    # The exact y[1] is 14.0629; rounding before the product with the weight would give 14.125.
    x, weight = torch.tensor([1.0, 4.0]).bfloat16(), torch.tensor([1.0, 10.25]).bfloat16()
    assert F.rms_norm(x, weight).tolist() == [0.34375, 14.0625]


def test_a_float32_weight_keeps_its_digits_beside_a_bfloat16_input():
    x, weight = normal(64, 6, dtype=torch.bfloat16), normal(6, seed=1, dtype=torch.float32)
    y = F.rms_norm(x, weight)
    assert y.dtype == torch.bfloat16
    assert_rounded_once(y, formulas.rms_norm(array(x), array(weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-3, 1e18])
def test_tiny_and_huge_inputs_come_out_right(size, dtype):
    x = (normal(8, 512) * size).to(dtype)  # the squares of 1e18 fit into float32, their sum over 512 does not
    weight = torch.ones(512, dtype=dtype)
    assert_rounded_once(F.rms_norm(x, weight), formulas.rms_norm(array(x), array(weight)))


def test_zeros_stay_zeros():
    x = torch.zeros(2, 3, requires_grad=True)
    y = F.rms_norm(x, torch.ones(3))
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 3))
    assert torch.isfinite(x.grad).all()


def test_its_gradients_are_right():
    assert torch.autograd.gradcheck(F.rms_norm, [normal(2, 5).requires_grad_(), normal(5, seed=1).requires_grad_()])
