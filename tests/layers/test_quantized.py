import copy

import pytest
import torch

from prenorm import ConfigError, Linear
from prenorm.layers.quantized import QuantizedLinear
from prenorm.ops.quantized import dequantize

from ..oracle.inputs import normal
from ..oracle.tolerance import array, assert_rounding_alone

SHAPE = {"in_features": 40, "out_features": 24}


def layers(kind="int8", dtype=torch.float32):
    linear = Linear(**SHAPE, bias=True, dtype=dtype)
    torch.nn.init.normal_(linear.bias)
    return linear, QuantizedLinear.of(linear, kind)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_close_to_the_layer_that_it_was_made_of(kind, dtype):
    linear, made = layers(kind, dtype)
    x = normal(50, 40, dtype=dtype)
    y = made(x)
    assert (y.dtype, made.dtype, linear.dtype) == (dtype, dtype, dtype)
    difference = (y - linear(x)).square().mean().sqrt() / linear(x).square().mean().sqrt()
    assert difference < {"int8": 0.01, "int4": 0.1}[kind]
    assert difference > 0
    assert torch.equal(made.bias, linear.bias)


def test_it_starts_as_zero():
    assert (QuantizedLinear(**SHAPE, kind="int4", bias=True)(torch.ones(2, 40)) == 0).all()


def test_nothing_of_it_is_trained():
    _, made = layers()
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert [name for name, _ in made.named_parameters()] == ["bias"]
    assert sorted(made.state_dict()) == ["bias", "scale", "weight"]


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_one_of_inputs_and_results_alone(to):
    linear, made = layers()
    weight, scale = made.weight.clone(), made.scale.clone()
    made.to(to)
    assert torch.equal(made.weight, weight)
    assert torch.equal(made.scale, scale)
    assert made.scale.dtype == torch.bfloat16
    assert (made.dtype, made.bias.dtype, made(torch.ones(2, 40, dtype=to)).dtype) == (to, to, to)
    made.float()
    x = normal(9, 40, dtype=torch.float32)
    bias = linear.bias.to(to).float()
    oracle = array(torch.nn.functional.linear(x, dequantize(*made.unpacked()), bias))
    assert_rounding_alone(made(x), oracle, torch.bfloat16)


def test_it_can_be_moved_and_copied_and_its_state_loaded():
    _, made = layers("int4")
    x = normal(3, 40, dtype=torch.float32)
    other = QuantizedLinear(**SHAPE, kind="int4", bias=True)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    with torch.device("meta"):
        empty = QuantizedLinear(**SHAPE, kind="int4", bias=True)
    assert empty.scale.is_meta
    assert empty.to_empty(device="cpu").scale.device.type == "cpu"
    with pytest.raises(RuntimeError, match="size mismatch"):
        QuantizedLinear(**SHAPE, kind="int8", bias=True).load_state_dict(made.state_dict())


def test_it_prints_its_sizes_and_refuses_others():
    assert repr(layers()[1]) == "QuantizedLinear(in_features=40, out_features=24, bias=True, kind=int8)"
    with pytest.raises(ConfigError, match="in_features"):
        QuantizedLinear(0, 3, "int8")
    with pytest.raises(ConfigError, match="int8 or int4"):
        QuantizedLinear(3, 3, "int3")
