import pytest
import torch

import prenorm.functional as F
from prenorm import ConfigError, RMSNorm, ShapeError

from ..oracle import formulas
from ..oracle.inputs import normal, randomise
from ..oracle.tolerance import array, assert_exact


def test_it_is_the_papers_formula_with_its_own_weight_and_eps():
    x, layer = normal(2, 3, 4), randomise(RMSNorm(4, eps=0.1, dtype=torch.float64))
    assert_exact(layer(x), formulas.rms_norm(array(x), array(layer.weight), 0.1))
    assert torch.equal(layer(x), F.rms_norm(x, layer.weight, eps=0.1))


def test_its_weight_starts_as_ones_and_goes_back_to_ones():
    layer = RMSNorm(3)
    assert [(name, p.tolist()) for name, p in layer.named_parameters()] == [("weight", [1, 1, 1])]
    randomise(layer).reset_parameters()
    assert layer.weight.tolist() == [1, 1, 1]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("size", [1, 3, 5])
def test_another_width_is_refused_even_one_that_would_broadcast(size):
    with pytest.raises(ShapeError, match=rf"the last dim must be d_model = 4, but x is \(2, {size}\)"):
        RMSNorm(4)(torch.ones(2, size))


@pytest.mark.parametrize("eps", [0.0, -1e-6, float("nan"), float("inf")])
def test_eps_must_be_a_positive_number(eps):
    with pytest.raises(ConfigError, match="eps must be"):
        RMSNorm(4, eps)
