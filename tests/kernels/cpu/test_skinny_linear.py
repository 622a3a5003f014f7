import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import prenorm.functional as F
from prenorm import Linear, use_backend
from prenorm.kernels.cpu import native
from prenorm.kernels.cpu import skinny_linear as kernel
from prenorm.ops import backends

from ...oracle.inputs import layouts, normal, seeds
from ...oracle.tolerance import array, assert_accurate, assert_rounded_once, assert_rounding_alone

sizes = st.sampled_from([1, 2, 3, 7, 8, 16, 31, 33, 64, 100])
rows = st.integers(1, kernel.MAX_ROWS)
narrow = st.sampled_from([torch.float32, torch.bfloat16])

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")


def inputs(*leading, d_in, d_out, dtype=torch.float32, seed=0, layout="contiguous", bias=True):
    x = normal(*leading, d_in, seed=seed, dtype=dtype, layout=layout)
    weight, offset = (normal(*shape, seed=seed + 1, dtype=dtype) for shape in ((d_out, d_in), (d_out,)))
    return x, weight, offset if bias else None


def oracle(x, weight, bias):
    product = array(x) @ array(weight).T
    return product if bias is None else product + array(bias)


@given(rows, sizes, sizes, narrow, layouts, seeds, st.booleans())
def test_values_are_right(count, d_in, d_out, dtype, layout, seed, bias):
    given = inputs(count, d_in=d_in, d_out=d_out, dtype=dtype, layout=layout, seed=seed, bias=bias)
    y = kernel.skinny_linear(*given)
    assert (y.shape, y.dtype) == ((count, d_out), dtype)
    assert_rounding_alone(y, oracle(*given), dtype, terms=4096 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("count", range(1, kernel.MAX_ROWS + 1))
@pytest.mark.parametrize(("d_in", "d_out"), [(2048, 700), (4097, 333)])
def test_sums_are_float32_and_rounded_once(count, d_in, d_out):
    wide = inputs(count, d_in=d_in, d_out=d_out)
    assert_accurate(kernel.skinny_linear(*wide), oracle(*wide), nn.functional.linear(*wide))
    given = inputs(count, d_in=d_in, d_out=d_out, dtype=torch.bfloat16)
    assert_rounded_once(kernel.skinny_linear(*given), oracle(*given))


@pytest.mark.parametrize("rows", range(1, kernel.MAX_ROWS + 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_depends_on_no_other_row_and_on_no_thread(dtype, rows):
    x, weight, bias = inputs(rows, d_in=1000, d_out=999, dtype=dtype)
    alone = torch.stack([kernel.skinny_linear(one.expand(rows, -1), weight, bias)[i] for i, one in enumerate(x)])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(kernel.skinny_linear(x, weight, bias), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_where_it_is(dtype):
    x, weight, _ = inputs(3, d_in=70, d_out=40, dtype=dtype, bias=False)
    x[1, 69], weight[7, 3] = torch.inf, torch.nan
    y, expected = kernel.skinny_linear(x, weight, None), nn.functional.linear(x.float(), weight.float())
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())
    assert y.isnan().sum() == 3


@pytest.mark.parametrize("change", ["copy_", "load_state_dict", "optimizer"])
def test_a_weight_that_changes_is_what_the_next_product_has(change):
    layer = Linear(64, 48)
    x, other = normal(2, 64, dtype=torch.float32), torch.randn(48, 64)
    with torch.no_grad():
        before = layer(x)
    if change == "copy_":
        with torch.no_grad():
            layer.weight.copy_(other)
    elif change == "load_state_dict":
        layer.load_state_dict({"weight": other})
    else:
        layer(x).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
    with torch.no_grad():
        after = layer(x)
    assert not torch.allclose(after, before)
    assert_rounding_alone(after, oracle(x, layer.weight, None), torch.float32)


def test_it_takes_what_it_can_and_nothing_else():
    x, weight, bias = inputs(4, d_in=8, d_out=6)
    for leading in [(), (1,), (2, 4), (2, 2, 2)]:
        assert kernel.supports(normal(*leading, 8, dtype=torch.float32), weight, bias)
    assert kernel.supports(x.bfloat16(), weight.bfloat16(), None)
    refused = [
        (normal(9, 8, dtype=torch.float32), weight, None),  # more rows than there is code for
        (x, weight.T.contiguous().T, None),
        (x, normal(6, 16, dtype=torch.float32)[:, :8], None),
        (x, weight.bfloat16(), None),
        (x.double(), weight.double(), None),
        (x, weight, bias.double()),
        (x, weight, bias[:5]),
        (x, weight, bias.to("meta")),
        (x, weight.to_mkldnn(), None),
        (x, weight.to_sparse(), None),
        (x[:0], weight, None),
        (x[:, :5], weight, None),
        (x, weight[0], None),
        (x, weight[:0], None),
        (x.as_subclass(Looked), weight, None),
        (x, weight.as_subclass(Looked), None),
        (torch.complex(x, x).conj().imag, weight, None),
        (x.requires_grad_(), weight, None),
        (x.detach(), nn.Parameter(weight), None),
        (x.detach(), weight, nn.Parameter(bias)),
    ]
    for one in refused:
        assert not kernel.supports(*one)
    with torch.no_grad():
        assert kernel.supports(x, nn.Parameter(weight), nn.Parameter(bias))
    with torch.autocast("cpu"):
        assert not kernel.supports(x.detach(), weight, None)


class Looked(torch.Tensor):
    """A tensor of a class of its own."""


def test_the_op_takes_it_for_few_rows_without_gradients():
    x, weight, _ = inputs(8, d_in=8, d_out=6, bias=False)
    assert backends.choose("linear", x, weight, None) is kernel.skinny_linear
    assert backends.choose("linear", x.repeat(2, 1), weight, None) is not kernel.skinny_linear
    with use_backend("reference"):
        assert backends.choose("linear", x, weight, None) is None


def test_a_bias_may_have_gaps():
    x, weight, _ = inputs(2, d_in=8, d_out=6)
    bias = normal(12, dtype=torch.float32)[::2]
    assert backends.choose("linear", x, weight, bias) is kernel.skinny_linear
    assert_rounding_alone(F.linear(x, weight, bias), oracle(x, weight, bias), torch.float32)
