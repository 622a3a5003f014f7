import torch
from hypothesis import given

import prenorm.functional as F

from ..oracle.inputs import layouts, leadings, normal, seeds, sizes
from ..oracle.tolerance import array, assert_exact


@given(leadings, sizes, sizes, layouts, seeds)
def test_it_multiplies_by_the_transposed_weight_and_adds_the_bias(leading, d_in, d_out, layout, seed):
    x, weight = normal(*leading, d_in, seed=seed, layout=layout), normal(d_out, d_in, seed=seed + 1, layout=layout)
    bias = normal(d_out, seed=seed + 2)
    product = array(x) @ array(weight).T
    assert_exact(F.linear(x, weight), product)
    assert_exact(F.linear(x, weight, bias), product + array(bias))


def test_its_gradients_are_right():
    inputs = [normal(*shape).requires_grad_() for shape in ((2, 3), (4, 3), (4,))]
    assert torch.autograd.gradcheck(F.linear, inputs)
