import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import explain, use_backend
from prenorm.kernels.cpu import native
from prenorm.kernels.cpu import quantized_linear as kernel
from prenorm.layers.linear import Linear
from prenorm.layers.quantized import QuantizedLinear
from prenorm.ops.quantized import dequantize, pack, quantize, quantized_linear, round_rows

from ...oracle.inputs import layouts, normal, seeds
from ...oracle.tolerance import array, assert_accurate, assert_rounded_once, assert_rounding_alone

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

sizes = st.sampled_from([1, 2, 5, 16, 17, 31, 32, 33, 64, 70])
rows = st.sampled_from([1, 2, 3, 7, 8, 9, 16, 21])
kinds = st.sampled_from(["int8", "int4"])
narrow = st.sampled_from([torch.float32, torch.bfloat16])


def inputs(*leading, d_in, d_out, kind="int8", dtype=torch.float32, seed=0, layout="contiguous", bias=True):
    """x, the packed weight and its scales, the bias and d_out; and the weight that they stand for."""
    x = normal(*leading, d_in, seed=seed, dtype=dtype, layout=layout)
    numbers, scale = quantize(normal(d_out, d_in, seed=seed + 1, dtype=torch.float32), kind)
    offset = normal(d_out, seed=seed + 2, dtype=dtype) if bias else None
    return (x, *pack(numbers, scale, kind), offset, d_out), dequantize(numbers, scale)


def oracle(given, weight):
    x, _, _, bias, _ = given
    product = array(round_rows(x)) @ array(weight).T
    return product if bias is None else product + array(bias)


@given(rows, sizes, sizes, kinds, narrow, layouts, seeds, st.booleans())
def test_values_are_right(count, d_in, d_out, kind, dtype, layout, seed, bias):
    given, weight = inputs(count, d_in=d_in, d_out=d_out, kind=kind, dtype=dtype, layout=layout, seed=seed, bias=bias)
    assert kernel.supports(*given)
    y = kernel.quantized_linear(*given)
    assert (y.shape, y.dtype) == ((count, d_out), dtype)
    assert_rounding_alone(y, oracle(given, weight), dtype, terms=64 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("count", "d_in", "d_out"), [(1, 2048, 700), (8, 4097, 333), (300, 1000, 100)])
def test_sums_are_float32_and_rounded_once(count, d_in, d_out, kind):
    given, weight = inputs(count, d_in=d_in, d_out=d_out, kind=kind)
    with use_backend("reference"):
        x, *others, out_features = given
        plain = quantized_linear(x, *others, out_features=out_features)
    assert_accurate(kernel.quantized_linear(*given), oracle(given, weight), plain)
    given, weight = inputs(count, d_in=d_in, d_out=d_out, kind=kind, dtype=torch.bfloat16)
    assert_rounded_once(kernel.quantized_linear(*given), oracle(given, weight))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_depends_on_no_other_row_nor_on_how_many_there_are_nor_on_threads(dtype, kind):
    (x, *others), _ = inputs(600, d_in=1000, d_out=99, kind=kind, dtype=dtype)
    alone = torch.cat([kernel.quantized_linear(one[None], *others) for one in x])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(kernel.quantized_linear(x, *others), alone)
            assert torch.equal(kernel.quantized_linear(x[:5], *others), alone[:5])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_spoils_its_own_row_as_in_the_formula(dtype):
    (x, weight, scale, _, out), _ = inputs(4, d_in=70, d_out=40, dtype=dtype)
    x[1, 69], x[2, 3], x[3] = torch.inf, torch.nan, 0
    y = kernel.quantized_linear(x, weight, scale, None, out)
    assert torch.equal(y.isnan().all(-1), torch.tensor([False, True, True, False]))
    assert y.isnan().sum() == 2 * 40
    assert (y[3] == 0).all()


def test_numbers_too_small_to_be_divided_by_become_zero():
    (x, *others), _ = inputs(2, d_in=64, d_out=40, bias=False)
    x[0] = 1e-39
    y = kernel.quantized_linear(x, *others)
    assert (y[0] == 0).all()
    assert y[1].isfinite().all()


def test_views_of_complex_numbers_are_what_they_say():
    (x, weight, scale, bias, out), _ = inputs(3, d_in=64, d_out=40)
    views = [torch.complex(one, one).conj().imag for one in (x, bias)]
    assert all(view.is_neg() for view in views)
    y = kernel.quantized_linear(views[0], weight, scale, views[1], out)
    assert torch.equal(y, kernel.quantized_linear(-x, weight, scale, -bias, out))


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32), (32,), (2, 3, 32)])
def test_any_leading_dims(shape):
    (x, weight, scale, bias, out), _ = inputs(*shape[:-1], d_in=32, d_out=20)
    y = kernel.quantized_linear(x, weight, scale, bias, out)
    assert y.shape == (*shape[:-1], 20)
    if x.ndim == 3 and x.numel():
        assert torch.equal(y.flatten(0, 1), kernel.quantized_linear(x.flatten(0, 1), weight, scale, bias, out))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch says it of itself
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_code_holds_it_as_one_op_and_exported_code_does_not():
    layer, x = QuantizedLinear.of(Linear(64, 48, bias=True), "int8"), normal(5, 64, dtype=torch.float32)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), expected)
        program = torch.export.export(layer, (x,))
        assert "prenorm" not in program.graph_module.code
        torch.testing.assert_close(program.module()(x), expected)


class OurOwn(torch.Tensor):
    """A tensor with something to say."""


@pytest.mark.parametrize(
    "change",
    [
        lambda x, weight, scale, bias, out: (x.double(), weight, scale, None, out),
        lambda x, weight, scale, bias, out: (x.as_subclass(OurOwn), weight, scale, bias, out),
        lambda x, weight, scale, bias, out: (x, weight, scale.float(), bias, out),
        lambda x, weight, scale, bias, out: (x, weight, scale, bias.bfloat16(), out),
        lambda x, weight, scale, bias, out: (x, weight.transpose(0, 1).contiguous().transpose(0, 1), scale, bias, out),
        lambda x, weight, scale, bias, out: (x[:, :32], weight, scale, bias, out),
        lambda x, weight, scale, bias, out: (x, weight, scale, bias, out + 16),
    ],
)
def test_it_leaves_other_tensors_to_the_formula(change):
    given, _ = inputs(3, d_in=64, d_out=40)
    assert kernel.supports(*given)
    assert not kernel.supports(*change(*given))


def test_explain_names_it():
    layer = QuantizedLinear.of(Linear(64, 48), "int8")
    (choice,) = explain(layer, torch.ones(2, 64))
    assert (choice.op, choice.runs) == ("quantized_linear", "prenorm.kernels.cpu.quantized_linear.quantized_linear")
    assert "floats" in choice.instead
