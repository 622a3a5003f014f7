import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import ConfigError, PrenormError, use_backend
from prenorm.ops.quantized import (
    GROUP,
    KINDS,
    dequantize,
    pack,
    packed_shapes,
    quantize,
    quantized_linear,
    round_rows,
    unpack,
)

from ..oracle.inputs import dtypes, layouts, leadings, normal, seeds
from ..oracle.tolerance import array, assert_rounding_alone

sizes = st.sampled_from([1, 2, 5, 16, 17, 31, 32, 33, 64, 70])
kinds = st.sampled_from(sorted(KINDS))
REACH = {"int8": (-127, 127), "int4": (-8, 7)}


def weight_of(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=torch.float32)


def packed(weight, kind):
    return pack(*quantize(weight, kind), kind)


def rounded(x):
    """What the paper says, in numpy: each group's numbers as multiples of its largest absolute value / 127."""
    wide = array(x)
    result = np.empty_like(wide)
    for start in range(0, wide.shape[-1], GROUP):
        group = wide[..., start : start + GROUP]
        step = np.abs(group).max(-1, keepdims=True, initial=0) / 127
        result[..., start : start + GROUP] = np.rint(group / np.where(step == 0, 1, step)) * step
    return result


@given(kinds, sizes, sizes, seeds)
def test_unpacking_gives_what_was_packed(kind, rows, columns, seed):
    numbers, scale = quantize(weight_of(rows, columns, seed=seed), kind)
    assert numbers.shape == (rows, columns)
    assert scale.shape == (rows, math.ceil(columns / GROUP))
    together = pack(numbers, scale, kind)
    assert tuple(tuple(one.shape) for one in together) == packed_shapes((rows, columns), kind)
    again = unpack(*together, (rows, columns))
    assert torch.equal(again[0], numbers)
    assert torch.equal(again[1], scale)


@given(st.integers(-110, 110), seeds)
def test_four_bits_depend_on_the_size_of_a_weight_in_nothing_but_the_scale(power, seed):
    weight = weight_of(8, 64, seed=seed)
    numbers, scale = quantize(weight, "int4")
    as_large = quantize(weight * 2.0**power, "int4")
    assert torch.equal(as_large[0], numbers)
    assert torch.equal(as_large[1].double(), scale.double() * 2.0**power)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.5), ("int4", 4.5)])
def test_a_number_takes_as_many_bits_as_it_says(kind, bits):
    assert sum(8 * one.nbytes for one in packed(weight_of(64, 96), kind)) == bits * 64 * 96


@given(kinds, sizes, sizes, seeds, st.sampled_from([1e-30, 1e-6, 1.0, 1e6]))
def test_a_weight_is_rounded_to_the_nearest_number_of_its_scale(kind, rows, columns, seed, size):
    weight = weight_of(rows, columns, seed=seed) * size
    numbers, scale = quantize(weight, kind)
    least, most = REACH[kind]
    assert least <= int(numbers.min()) <= int(numbers.max()) <= most
    assert scale.dtype == torch.bfloat16
    each = scale.float().abs().repeat_interleave(GROUP, 1)[:, :columns]
    inside = (numbers > least) & (numbers < most)
    distance = (dequantize(numbers, scale) - weight).abs()
    assert (distance <= 0.5001 * each)[inside].all()
    if kind == "int8":  # nothing is cut off
        assert (distance <= 0.5001 * each).all()


def test_four_bits_are_used_well():
    """An error of 8.3 % of normal weights; the scale that just holds the largest value gives 9.5 %."""
    weight = weight_of(256, 512)
    numbers, scale = quantize(weight, "int4")
    error = (dequantize(numbers, scale) - weight).square().mean().sqrt()
    groups = weight.view(256, -1, GROUP)
    step = groups.abs().amax(-1, keepdim=True) / 7
    plain = ((groups / step).round() * step - groups).square().mean().sqrt()
    assert error < 0.89 * plain


@given(leadings, sizes, dtypes, layouts, seeds)
def test_each_group_of_a_token_is_rounded_by_itself(leading, columns, dtype, layout, seed):
    x = normal(*leading, columns, seed=seed, dtype=dtype, layout=layout)
    y = round_rows(x)
    assert y.dtype == torch.promote_types(dtype, torch.float32)
    assert y.shape == x.shape
    step = np.abs(array(x)).max(initial=0) / 127
    assert (np.abs(array(y) - rounded(x)) <= 1.0001 * step).all()  # one that lies between two may go to either
    assert np.sum(np.abs(array(y) - rounded(x)) > 1e-6) <= x.numel() // 100 + 1
    assert (np.abs(array(y) - array(x)) <= 0.5001 * step).all()


def test_a_group_without_numbers_to_speak_of_is_zero_and_one_with_nan_or_infinity_is_nan():
    x = torch.ones(4, 96)
    x[0, :32] = 0
    x[1, 40] = torch.nan
    x[2, 70] = -torch.inf
    x[3, 32:64] = 1e-40
    y = round_rows(x)
    assert torch.equal(y[0], x[0])
    assert torch.equal(y.isnan().view(4, 3, 32).all(-1).nonzero(), torch.tensor([[1, 1], [2, 2]]))
    assert y.isnan().sum() == 64
    assert (y[3, 32:64] == 0).all()


@given(leadings, sizes, sizes, kinds, dtypes, layouts, seeds, st.booleans())
def test_the_product_is_that_of_the_rounded_numbers(leading, d_in, d_out, kind, dtype, layout, seed, bias):
    x = normal(*leading, d_in, seed=seed, dtype=dtype, layout=layout)
    numbers, scale = quantize(weight_of(d_out, d_in, seed=seed + 1), kind)
    offset = normal(d_out, seed=seed + 2, dtype=dtype) if bias else None
    with use_backend("reference"):
        y = quantized_linear(x, *pack(numbers, scale, kind), offset, out_features=d_out)
    assert y.dtype == dtype
    each = np.repeat(array(scale), GROUP, axis=1)[:, :d_in]
    oracle = array(round_rows(x)) @ (array(numbers) * each).T + (0 if offset is None else array(offset))
    assert_rounding_alone(y, oracle, dtype, terms=4096 if dtype != torch.bfloat16 else 4)


def test_a_loud_token_changes_no_other():
    x, (weight, scale) = weight_of(6, 64), packed(weight_of(48, 64, seed=1), "int8")
    loud = x.clone()
    loud[2] *= 1e6
    before, after = (quantized_linear(given, weight, scale, out_features=48) for given in (x, loud))
    assert torch.equal(before == after, torch.arange(6).ne(2)[:, None].expand(6, 48))


def test_autocast_leaves_the_product_alone():
    x, (weight, scale) = weight_of(6, 64), packed(weight_of(48, 64, seed=1), "int4")
    for backend in ("auto", "reference"):
        with use_backend(backend):
            expected = quantized_linear(x, weight, scale, out_features=48)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(quantized_linear(x, weight, scale, out_features=48), expected)


def test_other_kinds_are_refused():
    with pytest.raises(ConfigError, match=r"^weights become int8 or int4, not 'int2'\.$"):
        quantize(weight_of(2, 2), "int2")


def test_gradients_are_refused():
    weight, scale = packed(weight_of(8, 32), "int8")
    x = weight_of(3, 32).requires_grad_()
    with pytest.raises(PrenormError, match="quantised weights cannot be trained"):
        quantized_linear(x, weight, scale, out_features=8)
    with torch.no_grad():
        assert quantized_linear(x, weight, scale, out_features=8).shape == (3, 8)
