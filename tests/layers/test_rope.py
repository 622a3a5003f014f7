import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import ConfigError, Linear, RangeError, RopeScaling, RotaryEmbedding

from ..oracle import formulas
from ..oracle.inputs import dtypes, integers, layouts, leadings, normal, seeds, seqs
from ..oracle.tolerance import array, assert_exact, assert_rounded_once, assert_rounding_alone

LLAMA3 = RopeScaling("llama3", 8.0, original_max_seq_len=64)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@given(leadings, seqs, st.booleans(), st.sampled_from([None, LLAMA3]), dtypes, layouts, seeds)
def test_it_gives_the_bits_of_the_formula(leading, seq, interleaved, scaling, dtype, layout, seed):
    layer = RotaryEmbedding(6, 300, theta=50.0, interleaved=interleaved, scaling=scaling)
    x = normal(*leading, seq, 6, seed=seed, dtype=dtype, layout=layout)
    positions = integers(*leading, seq, limit=300, seed=seed)
    formula = F.rope(x, positions, theta=50.0, interleaved=interleaved, scaling=scaling)
    assert torch.equal(layer(x, positions), formula)


def test_positions_are_places_unless_given():
    layer, x = RotaryEmbedding(4, 8), normal(2, 3, 4)
    assert torch.equal(layer(x), layer(x, torch.arange(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [0, 99_936])
def test_positions_near_100_000_are_as_accurate_as_near_0(first, dtype):
    layer, x, positions = RotaryEmbedding(16, 100_000), normal(64, 16, dtype=dtype), first + torch.arange(64)
    assert_rounded_once(layer(x, positions), formulas.rope(array(x), positions.numpy()))


def test_a_float64_input_gets_float64_angles():
    layer, x = RotaryEmbedding(16, 64), normal(64, 16)
    assert_exact(layer(x), formulas.rope(array(x), torch.arange(64).numpy()))


CONVERSIONS = {
    "to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "to(cpu, bfloat16)": lambda model: model.to("cpu", torch.bfloat16),
    "deepcopy": copy.deepcopy,
    "to_empty": lambda model: model.to_empty(device="cpu"),
    "meta and to_empty": lambda model: model.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_its_angles_keep_their_digits_whatever_becomes_of_the_model(convert):
    model = convert(torch.nn.Sequential(RotaryEmbedding(16, 64, scaling=LLAMA3)))
    for dtype in DTYPES:
        x = normal(64, 16, dtype=dtype)
        assert torch.equal(model[0](x), RotaryEmbedding(16, 64, scaling=LLAMA3)(x))


def test_made_on_the_meta_device_it_comes_to_its_input():
    with torch.device("meta"):
        layer = RotaryEmbedding(16, 64)
    x = normal(64, 16, dtype=torch.float32)
    assert torch.equal(layer(x), RotaryEmbedding(16, 64)(x))


@pytest.mark.parametrize("move", [lambda m: m.to("cpu"), lambda m: m.float(), lambda m: m.to("cpu", torch.bfloat16)])
def test_made_on_the_meta_device_it_can_be_moved_like_weights_that_were_assigned(move):
    with torch.device("meta"):
        model = torch.nn.Sequential(Linear(16, 16), RotaryEmbedding(16, 64))
    model.load_state_dict(Linear(16, 16).state_dict(prefix="0."), assign=True)
    x = normal(64, 16, dtype=torch.float32)
    assert torch.equal(move(model)[1](x), RotaryEmbedding(16, 64)(x))


def test_made_under_inference_mode_it_can_be_trained_through():
    with torch.inference_mode():
        made, moved = RotaryEmbedding(4, 8), RotaryEmbedding(4, 8)
        moved(torch.ones(2, 4, device="meta"))  # to another device
        moved(torch.ones(2, 4))
    for layer in (made, moved):
        x = normal(2, 4, dtype=torch.float32).requires_grad_()
        layer(x).square().sum().backward()
        assert_rounding_alone(
            x.grad, 2 * array(x), torch.float32, terms=8
        )  # a rotation keeps the length, whose gradient is 2 x


def test_it_is_no_part_of_the_state_dict_and_has_no_parameters():
    layer = RotaryEmbedding(4, 8)
    assert dict(layer.state_dict()) == {}
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("bad", [-1, 8, 100])
def test_a_position_outside_is_refused_with_the_numbers(bad):
    message = rf"\[0, max_seq_len\) = \[0, 8\), but the token positions go from {min(bad, 2)} to {max(bad, 2)}"
    for dtype in DTYPES:
        with pytest.raises(RangeError, match=message):
            RotaryEmbedding(4, 8)(normal(2, 4, dtype=dtype), torch.tensor([2, bad]))


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(RangeError, match=r"\[0, max_seq_len\) = \[0, 8\)"):
        RotaryEmbedding(4, 8)(normal(9, 4))


@pytest.mark.usefixtures("shapes_unchecked")
def test_positions_may_be_int32():
    layer, positions = RotaryEmbedding(4, 8), torch.tensor([5, 0, 1])
    for x in (normal(3, 4), normal(3, 4).float()):
        assert torch.equal(layer(x, positions.int()), layer(x, positions))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 3}, "head_dim must be even, .* but it is 3; head_dim=4 would do"),
        ({"head_dim": 0}, "head_dim must be an integer of at least 1"),
        ({"max_seq_len": 0}, "max_seq_len must be an integer of at least 1"),
        ({"theta": 0.0}, "theta must be greater than 0"),
        ({"theta": float("nan")}, "theta must be a finite number"),
    ],
)
def test_numbers_that_no_rope_can_have_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RotaryEmbedding(**{"head_dim": 4, "max_seq_len": 8, **arguments})
