import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import use_backend

from ..oracle import formulas
from ..oracle.inputs import dtypes, layouts, leadings, normal, seeds, sizes
from ..oracle.tolerance import (
    array,
    assert_accurate,
    assert_close,
    assert_exact,
    assert_rounded_once,
    assert_rounding_alone,
)

backends = pytest.mark.parametrize("backend", ["auto", "reference"])


def inputs(*shape, dtype=torch.float64, seed=0, layout="contiguous"):
    """x, weight and bias."""
    x = normal(*shape, seed=seed, dtype=dtype, layout=layout)
    return x, *(normal(shape[-1], seed=seed + n, dtype=dtype, layout=layout) for n in (1, 2))


def oracle(x, weight, bias, eps=1e-5):
    return formulas.layer_norm(array(x), array(weight), array(bias), eps)


@given(leadings, sizes, dtypes, layouts, seeds, st.sampled_from(["auto", "reference"]))
def test_it_is_the_papers_formula(leading, d_model, dtype, layout, seed, backend):
    x, weight, bias = inputs(*leading, 64, d_model, dtype=dtype, seed=seed, layout=layout)
    with use_backend(backend):
        y = F.layer_norm(x, weight, bias, eps=1e-3)
    assert y.dtype == dtype
    wanted = oracle(x, weight, bias, 1e-3)
    if dtype == torch.bfloat16:
        assert_rounded_once(y, wanted)
    else:
        assert_rounding_alone(y, wanted, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(st.sampled_from([3, 8, 64, 300]), seeds)
def test_the_kernel_is_as_accurate_as_the_formula(dtype, d_model, seed):
    given = inputs(64, d_model, dtype=dtype, seed=seed)
    with use_backend("reference"):
        plain = F.layer_norm(*given)
    assert_accurate(F.layer_norm(*given), oracle(*given), plain)


@given(leadings, st.integers(2, 9), seeds)
def test_every_vector_comes_out_with_mean_zero_and_variance_one(leading, d_model, seed):
    x = normal(*leading, 3, d_model, seed=seed)
    one = torch.ones(d_model, dtype=x.dtype)
    y = F.layer_norm(x, one, torch.zeros_like(one), eps=1e-300)
    assert_close(y.square().mean(-1), array(torch.ones_like(y[..., 0])))
    assert_exact(1 + y.mean(-1), array(torch.ones_like(y[..., 0])))


@backends
def test_a_large_mean_costs_the_digits_that_it_takes_and_no_more(backend):
    # A float32 of 1e4 has steps of 1e-3, and the mean is rounded to one. A variance from the mean of squares less the
    # square of the mean would be off by 1e8 * eps = 12, and it is 1.
    offset = 1e4
    x, weight, bias = inputs(64, 300, dtype=torch.float32)
    x = x + offset
    with use_backend(backend):
        assert_rounding_alone(F.layer_norm(x, weight, bias), oracle(x, weight, bias), x.dtype, terms=int(offset))


@backends
def test_eps_stands_inside_the_root(backend):
    x = torch.tensor([1e-3, -1e-3], dtype=torch.float64)  # variance 1e-6, as much as eps: y = 1 / sqrt(2)
    one = torch.ones(2, dtype=torch.float64)
    with use_backend(backend):
        assert_exact(F.layer_norm(x, one, 0 * one, eps=1e-6), [math.sqrt(0.5), -math.sqrt(0.5)])


@backends
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_numbers_that_are_all_the_same_give_the_bias_and_finite_gradients(value, backend):
    x, bias = torch.full((2, 4), value, requires_grad=True), torch.arange(4.0)
    with use_backend(backend):
        y = F.layer_norm(x, torch.ones(4), bias)
    y.square().sum().backward()
    assert torch.equal(y, bias.expand(2, 4))
    assert torch.isfinite(x.grad).all()


def test_float32_weights_keep_their_digits_beside_a_bfloat16_input():
    x = normal(64, 6, dtype=torch.bfloat16)
    weight, bias = (normal(6, seed=n, dtype=torch.float32) for n in (1, 2))
    y = F.layer_norm(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert_rounded_once(y, oracle(x, weight, bias))


def test_a_float64_input_keeps_its_digits_beside_float32_weights():
    x = normal(64, 6)
    weight, bias = (normal(6, seed=n, dtype=torch.float32) for n in (1, 2))
    assert_exact(F.layer_norm(x, weight, bias), oracle(x, weight, bias))


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e17])
def test_tiny_and_huge_inputs_come_out_right(size):
    x, weight, bias = inputs(64, 64, dtype=torch.float32)
    x = x * size
    with use_backend("reference"):
        plain = F.layer_norm(x, weight, bias)
    assert_rounding_alone(plain, oracle(x, weight, bias), torch.float32)
    assert_accurate(F.layer_norm(x, weight, bias), oracle(x, weight, bias), plain)


@backends
def test_its_gradients_are_right(backend):
    with use_backend(backend):
        assert torch.autograd.gradcheck(F.layer_norm, [part.requires_grad_() for part in inputs(3, 5)])


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_gradients_are_as_accurate_as_pytorchs(dtype, backend):
    weigh = normal(64, 48, seed=5, dtype=dtype)

    def gradients(layer_norm, *given):
        parts = [part.detach().requires_grad_() for part in given]
        return torch.autograd.grad((layer_norm(*parts) * weigh.to(parts[0].dtype)).sum(), parts)[0]

    def pytorchs(x, weight, bias):
        return torch.nn.functional.layer_norm(x, (48,), weight, bias)

    given = inputs(64, 48, dtype=dtype)
    exact = gradients(pytorchs, *(part.double() for part in given))
    with use_backend(backend):
        assert_accurate(gradients(F.layer_norm, *given), array(exact), gradients(pytorchs, *given))
