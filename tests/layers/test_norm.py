import pytest
import torch

import prenorm.functional as F
from prenorm import ConfigError, LayerNorm, RMSNorm, ShapeError

from ..oracle import formulas
from ..oracle.inputs import normal, randomise
from ..oracle.tolerance import array, assert_exact


def test_it_is_the_papers_formula_with_its_own_weight_and_eps():
    x, layer = normal(2, 3, 4), randomise(RMSNorm(4, eps=0.1, dtype=torch.float64))
    assert_exact(layer(x), formulas.rms_norm(array(x), array(layer.weight), 0.1))
    assert torch.equal(layer(x), F.rms_norm(x, layer.weight, eps=0.1))


def test_a_layer_norm_is_the_papers_formula_with_its_own_weight_bias_and_eps():
    x, layer = normal(2, 3, 4), randomise(LayerNorm(4, eps=0.1, dtype=torch.float64))
    weight, bias = layer.weight, layer.bias
    assert_exact(layer(x), formulas.layer_norm(array(x), array(weight), array(bias), 0.1))
    assert torch.equal(layer(x), F.layer_norm(x, weight, bias, eps=0.1))


@pytest.mark.parametrize("size", [4, 1])
def test_a_layer_norm_is_pytorchs_own(size):
    ours, theirs = LayerNorm(size, dtype=torch.float64), torch.nn.LayerNorm(size, dtype=torch.float64)
    assert ours.eps == theirs.eps
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(randomise(ours).state_dict())
    assert_exact(ours(normal(2, 3, size)), array(theirs(normal(2, 3, size))))


def parameters(layer):
    return {name: parameter.tolist() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize(
    ("norm", "start"), [(RMSNorm, {"weight": [1, 1, 1]}), (LayerNorm, {"weight": [1, 1, 1], "bias": [0, 0, 0]})]
)
def test_its_weight_starts_as_ones_its_bias_as_zeros_and_both_go_back_there(norm, start):
    layer = norm(3)
    assert parameters(layer) == start
    assert parameters(randomise(layer)) != start
    layer.reset_parameters()
    assert parameters(layer) == start


norms = pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])


@norms
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("size", [1, 3, 5])
def test_another_width_is_refused_even_one_that_would_broadcast(size, norm):
    with pytest.raises(ShapeError, match=rf"the last dim must be d_model = 4, but x is \(2, {size}\)"):
        norm(4)(torch.ones(2, size))


@norms
@pytest.mark.parametrize("eps", [0.0, -1e-6, float("nan"), float("inf")])
def test_eps_must_be_a_positive_number(eps, norm):
    with pytest.raises(ConfigError, match="eps must be"):
        norm(4, eps)


@norms
def test_it_is_made_in_the_dtype_and_on_the_device_asked_for_and_says_its_sizes(norm):
    layer = norm(4, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert layer(torch.ones(2, 4, device="meta", dtype=torch.bfloat16)).shape == (2, 4)
    assert repr(norm(4, eps=0.5)) == f"{norm.__name__}(d_model=4, eps=0.5)"


@norms
def test_a_width_that_is_no_size_is_refused_by_its_name(norm):
    with pytest.raises(ConfigError, match="d_model must be an integer of at least 1, not 0"):
        norm(0)
