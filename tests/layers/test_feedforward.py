import pytest
import torch

import prenorm.functional as F
from prenorm import ConfigError, FeedForward, SwiGLU

from ..oracle import formulas
from ..oracle.inputs import normal, randomise, weights_of
from ..oracle.tolerance import array, assert_exact


def test_it_is_the_papers_formula():
    x, layer = normal(2, 3, 4), randomise(SwiGLU(4, 7, dtype=torch.float64))
    weights = weights_of(layer)
    assert_exact(
        layer(x), formulas.swiglu(array(x), *(weights[f"{name}_proj.weight"] for name in ("gate", "up", "down")))
    )
    assert torch.equal(layer(x), F.swiglu(x, layer.gate_proj.weight, layer.up_proj.weight, layer.down_proj.weight))


def test_d_ff_is_the_width_that_is_built():
    shapes = {name: tuple(weight.shape) for name, weight in SwiGLU(4, 7).state_dict().items()}
    assert shapes == {"gate_proj.weight": (7, 4), "up_proj.weight": (7, 4), "down_proj.weight": (4, 7)}


@pytest.mark.parametrize("layer", [SwiGLU, FeedForward])
def test_a_width_that_is_no_size_is_refused_by_its_name(layer):
    with pytest.raises(ConfigError, match="d_ff must be an integer of at least 1, not 0"):
        layer(4, 0)
    with pytest.raises(ConfigError, match="d_model must be an integer of at least 1, not 0"):
        layer(0, 4)


# The classical one


def test_the_classical_one_is_two_projections_with_gelu_between():
    x, layer = normal(2, 3, 4), randomise(FeedForward(4, 7, dtype=torch.float64)).eval()
    weights = weights_of(layer)
    hidden = formulas.gelu(array(x) @ weights["up_proj.weight"].T + weights["up_proj.bias"])
    assert_exact(layer(x), hidden @ weights["down_proj.weight"].T + weights["down_proj.bias"])


def test_the_classical_one_has_biases_which_start_as_zeros():
    layer = FeedForward(4, 7)
    assert {name: tuple(weight.shape) for name, weight in layer.state_dict().items()} == {
        "up_proj.weight": (7, 4),
        "up_proj.bias": (7,),
        "down_proj.weight": (4, 7),
        "down_proj.bias": (4,),
    }
    assert not layer.up_proj.bias.any()
    assert not layer.down_proj.bias.any()


def test_the_classical_one_drops_what_comes_out_of_the_gelu_and_not_its_own_output():
    # down_proj is the identity, so the output is the hidden values and a bias of 1.
    layer, p, size = FeedForward(50, 50, dropout=0.25, dtype=torch.float64), 0.25, 50
    with torch.no_grad():
        layer.up_proj.weight.copy_(torch.eye(size))
        layer.down_proj.weight.copy_(torch.eye(size))
        layer.down_proj.bias.fill_(1.0)
    x = normal(400, size)
    y, hidden = layer(x), formulas.gelu(array(x))
    kept = array(y) != 1.0
    assert_exact(y[torch.from_numpy(kept)], hidden[kept] / (1 - p) + 1)
    assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / kept.size) ** 0.5
    assert_exact(layer.eval()(x), hidden + 1)


@pytest.mark.parametrize("p", [1.0, -0.5])
def test_a_dropout_that_is_no_probability_below_one_is_refused(p):
    with pytest.raises(ConfigError, match="dropout must be"):
        FeedForward(4, 8, dropout=p)
