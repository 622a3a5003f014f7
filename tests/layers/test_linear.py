import math

import pytest
import torch

from prenorm import ConfigError, Linear

from ..oracle.inputs import normal, randomise
from ..oracle.tolerance import array, assert_exact


def test_it_is_the_matrix_product_with_its_weight():
    x = normal(2, 3, 4)
    for bias in (False, True):
        layer = randomise(Linear(4, 5, bias=bias, dtype=torch.float64))
        wanted = array(x).dot(array(layer.weight).T) + (array(layer.bias) if bias else 0)
        assert_exact(layer(x), wanted)


def test_it_has_a_bias_only_if_asked():
    assert {name: tuple(p.shape) for name, p in Linear(4, 5).named_parameters()} == {"weight": (5, 4)}
    assert set(Linear(4, 5, bias=True).state_dict()) == {"weight", "bias"}


def test_weights_start_as_glorots_truncated_normal_and_biases_as_zero():
    layer = Linear(60, 100, bias=True)
    std = math.sqrt(2 / 160)
    assert layer.weight.abs().max() <= 3 * std
    # Cutting at 3 standard deviations leaves 0.9866 of the deviation; the estimate is off by about 1 / sqrt(2 n).
    assert abs(layer.weight.std().item() / (0.9866 * std) - 1) < 5 / math.sqrt(2 * layer.weight.numel())
    assert not layer.bias.any()


def test_it_is_made_on_the_device_and_in_the_dtype_asked_for():
    layer = Linear(2, 3, bias=True, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("sizes", [(0, 3), (3, -1), (2.0, 3), (True, 3)])
def test_sizes_that_are_no_sizes_are_refused_by_name(sizes):
    with pytest.raises(ConfigError, match=r"(in|out)_features must be an integer of at least 1"):
        Linear(*sizes)
