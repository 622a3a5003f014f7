import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import use_backend
from prenorm.kernels.cpu import linear as kernel
from prenorm.kernels.cpu import native
from prenorm.ops import backends

from ...oracle.inputs import layouts, leadings, normal, seeds
from ...oracle.tolerance import array, assert_accurate, assert_rounding_alone

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
sizes = st.sampled_from([1, 2, 3, 7, 8, 16, 31, 64, 100])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were a processor on which the kernel is the faster one."""
    if kernel.REASON.startswith("MKL"):
        monkeypatch.setattr(kernel, "REASON", "")
    monkeypatch.setattr(kernel, "BFLOAT16_REASON", "")


def inputs(*leading, d_in, d_out, seed=0, layout="contiguous", bias=True, dtype=torch.float32):
    """x, weight, bias and the gradient of the result."""
    x = normal(*leading, d_in, seed=seed, dtype=dtype, layout=layout)
    weight, offset = (normal(*shape, seed=seed + 1, dtype=dtype) for shape in ((d_out, d_in), (d_out,)))
    return x, weight, offset if bias else None, normal(*leading, d_out, seed=seed + 2, dtype=dtype)


def why_not(dtype):
    """Why the kernel cannot run here even where it would be the faster one."""
    return kernel.REASON if dtype == torch.float32 else native.unavailable_reason()


def run(function, x, weight, bias, grad):
    """The result and all gradients."""
    leaves = [one.detach().requires_grad_() for one in (x, weight, bias) if one is not None]
    y = function(*leaves, *([] if bias is not None else [None]))
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def oracle(x, weight, bias, grad):
    """The same in float64."""
    x, weight, grad = array(x), array(weight), array(grad)
    rows, gradients = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    expected = [x @ weight.T, grad @ weight, gradients.T @ rows]
    return expected if bias is None else [expected[0] + array(bias), *expected[1:], gradients.sum(0)]


@given(leadings, sizes, sizes, layouts, seeds, st.booleans(), dtypes)
def test_values_and_gradients_are_right(leading, d_in, d_out, layout, seed, bias, dtype):
    given = inputs(*leading, 3, d_in=d_in, d_out=d_out, seed=seed, layout=layout, bias=bias, dtype=dtype)
    if given[0].numel() == 0:
        return  # the formula's
    for actual, expected in zip(run(kernel.linear, *given), oracle(*given), strict=True):
        assert actual.shape == expected.shape
        if dtype == torch.bfloat16:  # summed in float32 and rounded once
            assert_rounding_alone(actual, expected, dtype, terms=1)
        else:
            assert_rounding_alone(actual, expected, dtype)


@every_dtype
@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(300, 512, 700), (64, 2048, 64), (1, 4096, 999)])
def test_they_are_as_accurate_as_pytorchs(rows, d_in, d_out, dtype):
    given = inputs(rows, d_in=d_in, d_out=d_out, dtype=dtype)
    plain = run(torch.nn.functional.linear, *given)
    for actual, expected, formula in zip(run(kernel.linear, *given), oracle(*given), plain, strict=True):
        assert_accurate(actual, expected, formula)


@every_dtype
def test_it_takes_what_it_can_and_nothing_else(here, dtype):
    x, weight, bias, _ = inputs(4, d_in=8, d_out=6, dtype=dtype)
    if why_not(dtype):
        assert not kernel.supports(x, weight, bias)
        return
    assert kernel.supports(x, weight, bias)
    assert kernel.supports(x, weight, None)
    assert kernel.supports(x, weight.T.contiguous().T, None)  # laid out the other way round
    refused = [
        (x, normal(6, 16, dtype=dtype)[:, :8], None),
        (x, weight.half(), None),
        (x, weight.double(), None),
        (x, weight, bias.double()),
        (x[:0], weight, None),
        (x[:, :5], weight, None),  # PyTorch names both sizes
        (x, weight[0], None),
        (x.as_subclass(Looked), weight, None),
    ]
    for one in refused:
        assert not kernel.supports(*one)
    with torch.autocast("cpu"):
        assert not kernel.supports(x, weight, None)
    assert torch.func.vmap(lambda row: torch.tensor(float(kernel.supports(row, weight, None))))(x).sum() == 0


class Looked(torch.Tensor):
    """A tensor of a class of its own."""


@pytest.mark.skipif(bool(native.unavailable_reason()), reason=native.unavailable_reason())
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_in_autocast_inputs_are_rounded_as_pytorch_rounds_them(here, dtypes, bias):
    x, weight, offset, grad = inputs(33, d_in=40, d_out=21, bias=bias)
    given = (x.to(dtypes[0]), weight.to(dtypes[1]), offset, grad.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert backends.choose("linear", *given[:3]) is kernel.autocast_linear
        ours, theirs = run(F.linear, *given), run(torch.nn.functional.linear, *given)
    rounded = oracle(*(None if one is None else one.bfloat16() for one in given))
    assert [one.dtype for one in ours] == [one.dtype for one in theirs]
    for actual, expected in zip(ours, rounded, strict=True):
        assert_rounding_alone(actual.bfloat16(), expected, torch.bfloat16, terms=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_to_another_dtype_and_double_numbers_are_left_to_pytorch(here, dtype):
    x, weight, bias, _ = inputs(33, d_in=40, d_out=21, dtype=dtype)
    with torch.autocast("cpu", torch.float16 if dtype == torch.float32 else torch.bfloat16):
        assert backends.choose("linear", x, weight, bias) is None
    assert backends.choose("linear", x, weight, bias) is not kernel.autocast_linear


@every_dtype
def test_the_op_takes_it_where_it_suits(here, dtype):
    x, weight, bias, _ = inputs(40, d_in=8, d_out=6, dtype=dtype)  # fewer rows have a kernel of their own
    chosen = backends.choose("linear", x, weight, bias)
    assert chosen is (None if why_not(dtype) else kernel.linear)
    assert backends.choose("linear", x.double(), weight.double(), None) is None
    with use_backend("reference"):
        assert backends.choose("linear", x, weight, bias) is None


@every_dtype
def test_a_view_that_is_negated_when_it_is_read_is(dtype):
    x, weight, bias, _ = inputs(4, d_in=8, d_out=6, dtype=dtype)
    negated = torch._neg_view(x)
    assert negated.is_neg()
    torch.testing.assert_close(kernel.linear(negated, weight, bias), torch.nn.functional.linear(-x, weight, bias))


def test_gradients_have_gradients(here):
    x, weight, bias, grad = inputs(5, d_in=7, d_out=6)
    found = []
    for function in (kernel.linear, torch.nn.functional.linear):
        leaves = [one.detach().requires_grad_() for one in (x, weight, bias)]
        first = torch.autograd.grad(function(*leaves), leaves, grad.requires_grad_(), create_graph=True)
        found.append(
            torch.autograd.grad(sum((one.square().sum() for one in first), torch.tensor(0.0)), [*leaves[:2], grad])
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_gradients_that_are_asked_for_are_made(here):
    x, weight, _, grad = inputs(5, d_in=7, d_out=6, bias=False)
    (alone,) = torch.autograd.grad(kernel.linear(x.requires_grad_(), weight, None), x, grad)
    torch.testing.assert_close(alone, grad @ weight)
    (alone,) = torch.autograd.grad(kernel.linear(x.detach(), weight.requires_grad_(), None), weight, grad)
    torch.testing.assert_close(alone, grad.T @ x.detach())


@pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")
@every_dtype
def test_compiled_code_gives_the_same_numbers(here, shapes_unchecked, dtype):
    def both(x, weight, bias):
        return F.linear(F.linear(x, weight, bias), weight.T.contiguous())

    x, weight, bias, _ = inputs(5, 3, d_in=8, d_out=6, dtype=dtype)
    grad = normal(5, 3, 8, dtype=dtype)
    eager, fast = run(both, x, weight, bias, grad), run(torch.compile(both, fullgraph=True), x, weight, bias, grad)
    for one, other in zip(eager, fast, strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_code_under_torch_func_holds_the_formula(here, shapes_unchecked):
    x, weight, bias, _ = inputs(5, d_in=8, d_out=6)
    slopes = torch.func.grad(lambda x: F.linear(x, weight, bias).square().sum())
    torch.testing.assert_close(torch.compile(slopes, fullgraph=True, backend="aot_eager")(x), slopes(x))


@pytest.mark.parametrize(
    ("vendor", "family", "runs"),
    [
        ("AuthenticAMD", 26, True),
        ("AuthenticAMD", 25, True),  # Zen 3 and Zen 4
        ("AuthenticAMD", 23, False),
        ("GenuineIntel", 6, False),
        ("HygonGenuine", 24, False),
        ("", 0, False),
    ],
)
def test_the_rule_goes_by_the_processor(vendor, family, runs):
    why = kernel.reason(vendor, family)
    assert (why == "") == runs or why.startswith("this PyTorch")
