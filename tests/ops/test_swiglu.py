import torch
from hypothesis import given

import prenorm.functional as F

from ..oracle import formulas
from ..oracle.inputs import dtypes, layouts, leadings, normal, seeds, sizes
from ..oracle.tolerance import array, assert_exact, assert_rounded_once


@given(leadings, sizes, sizes, layouts, seeds)
def test_it_is_the_papers_formula(leading, d_model, d_ff, layout, seed):
    x = normal(*leading, d_model, seed=seed, layout=layout)
    shapes = [(d_ff, d_model), (d_ff, d_model), (d_model, d_ff)]
    weights = [normal(*shape, seed=seed + i, layout=layout) for i, shape in enumerate(shapes, start=1)]
    assert_exact(F.swiglu(x, *weights), formulas.swiglu(array(x), *map(array, weights)))


@given(leadings, sizes, dtypes, layouts, seeds)
def test_silu_is_x_times_its_sigmoid(leading, size, dtype, layout, seed):
    x = 4 * normal(*leading, 64, size, seed=seed, dtype=dtype, layout=layout)
    assert_rounded_once(F.silu(x), formulas.silu(array(x)))


def test_silu_stays_finite_far_out():
    assert torch.equal(
        F.silu(torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30])), torch.tensor([0.0, 0.0, 0.0, 200.0, 1e30])
    )


def test_its_gradients_are_right():
    inputs = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(2, 3), (4, 3), (4, 3), (3, 4)])]
    assert torch.autograd.gradcheck(F.swiglu, inputs)
    assert torch.autograd.gradcheck(F.silu, inputs[:1])
