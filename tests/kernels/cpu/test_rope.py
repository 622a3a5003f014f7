import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from prenorm import use_backend
from prenorm.kernels.cpu import native
from prenorm.kernels.cpu import rope as kernel
from prenorm.ops import backends
from prenorm.ops.rope import rotate

from ...oracle.inputs import layouts, normal, seeds

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

dtypes = st.sampled_from(list(kernel.DTYPES))
every_dtype = pytest.mark.parametrize("dtype", list(kernel.DTYPES))
pairings = st.booleans()
halves = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64])
leadings = st.sampled_from([(), (3,), (2, 3), (2, 1, 3), (1, 2, 1, 3)])
of_torch_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")


def inputs(*leading, seq=5, half=16, dtype=torch.float32, seed=0, layout="contiguous", angles_for=()):
    """x, cosines, sines, and the gradient of the result."""
    x, grad = (normal(*leading, seq, 2 * half, seed=seed + i, dtype=dtype, layout=layout) for i in range(2))
    angles = 10 * normal(*angles_for, seq, half, seed=seed + 2)
    return x, angles.cos().float(), angles.sin().float(), grad


def run(function, x, cos, sin, grad, interleaved):
    """The result and the gradient."""
    leaf = x.detach().requires_grad_()
    y = function(leaf, cos, sin, interleaved=interleaved)
    return y.detach(), *torch.autograd.grad(y, leaf, grad)


def assert_the_formulas_bits(x, cos, sin, grad, interleaved):
    assert kernel.supports(x, cos, sin)
    actual = run(kernel.rotate, x, cos, sin, grad, interleaved)
    with use_backend("reference"):
        y, _ = run(rotate, x, cos, sin, grad, interleaved)
        back, _ = run(rotate, grad, cos, -sin, x, interleaved)  # a rotation's gradient is the rotation back
    assert actual[0].dtype == actual[1].dtype == x.dtype
    assert torch.equal(actual[0], y)
    assert torch.equal(actual[1], back)


@given(leadings, st.integers(1, 5), halves, dtypes, pairings, layouts, seeds)
def test_the_bits_are_the_formulas(leading, seq, half, dtype, interleaved, layout, seed):
    given = inputs(*leading, seq=seq, half=half, dtype=dtype, seed=seed, layout=layout)
    assert_the_formulas_bits(*given, interleaved)


@given(halves, dtypes, pairings, seeds)
def test_heads_side_by_side_in_memory_and_rows_with_angles_of_their_own(half, dtype, interleaved, seed):
    x, cos, sin, grad = inputs(2, 3, half=half, dtype=dtype, seed=seed, angles_for=(2, 1))
    assert_the_formulas_bits(x, cos, sin, grad, interleaved)
    x, grad = (one.transpose(1, 2).contiguous().transpose(1, 2) for one in (x, grad))
    assert_the_formulas_bits(x, cos, sin, grad, interleaved)
    y, grad_x = run(kernel.rotate, x, cos, sin, grad, interleaved)
    assert y.is_contiguous()
    assert grad_x.stride() == x.stride()  # so that what comes before needs no copy
    assert_the_formulas_bits(x, cos[..., :1, :].expand_as(cos), sin[..., :1, :].expand_as(sin), grad, interleaved)


@pytest.mark.parametrize("shape", [(2, 3, 5, 1), (1, 1, 5, 32), (1, 3, 1, 32), (2, 1, 1, 32), (1, 1, 1, 1)])
def test_an_expanded_input_is_read_rightly(shape):
    _, cos, sin, grad = inputs(2, 3)
    x = normal(*shape, dtype=torch.float32).expand(2, 3, 5, 32)
    assert_the_formulas_bits(x, cos, sin, grad, True)
    assert_the_formulas_bits(grad, cos, sin, x, False)


@every_dtype
@pytest.mark.parametrize("interleaved", [True, False])
def test_what_is_no_number_stays_with_its_pair(interleaved, dtype):
    x, cos, sin, _ = inputs(3, half=20, dtype=dtype)
    x[0, 1, 3], x[1, 2, 25], x[2, 0, 39] = torch.nan, torch.inf, -torch.inf
    with use_backend("reference"):
        expected = rotate(x, cos, sin, interleaved=interleaved)
    torch.testing.assert_close(kernel.rotate(x, cos, sin, interleaved), expected, rtol=0, atol=0, equal_nan=True)


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(count, dtype):
    given = inputs(3, 4, seq=101, half=32, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(kernel.rotate, *given, False)
        torch.set_num_threads(count)
        for actual, expected in zip(run(kernel.rotate, *given, False), alone, strict=True):
            assert torch.equal(actual, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("interleaved", [True, False])
def test_gradients_of_gradients_are_right(interleaved):
    x, cos, sin, grad = inputs(4)
    x, grad = x.requires_grad_(), grad.requires_grad_()
    (first,) = torch.autograd.grad(rotate(x, cos, sin, interleaved=interleaved).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x, grad)
    torch.testing.assert_close(second, 2 * grad)  # a rotation keeps lengths: the loss is the sum of squares of x
    (turned_back,) = torch.autograd.grad(rotate(x, cos, sin, interleaved=interleaved), x, grad, create_graph=True)
    (forth,) = torch.autograd.grad(turned_back, grad, torch.ones_like(x))
    torch.testing.assert_close(forth, rotate(torch.ones_like(x), cos, sin, interleaved=interleaved))


def test_a_batch_of_gradients_is_right():
    x, cos, sin, _ = inputs(seq=2, half=2)

    def turned(x):
        return rotate(x, cos, sin, interleaved=False)

    whole = torch.autograd.functional.jacobian(turned, x, vectorize=True)
    torch.testing.assert_close(whole, torch.autograd.functional.jacobian(turned, x))


# --- where the formula runs instead ---


class Subclass(torch.Tensor):
    """A tensor of a class of its own."""


def test_it_takes_what_it_can_and_nothing_else():
    x, cos, sin, _ = inputs(2, 3)
    assert kernel.supports(x, cos, sin)
    assert kernel.supports(x[..., ::2], cos[:, ::2], sin[:, ::2])
    assert backends.choose("rotate", x, cos, sin) is kernel.rotate
    refused = [
        (x.double(), cos.double(), sin.double()),
        (x.half(), cos, sin),
        (x, cos.double(), sin.double()),
        (x[..., 2:], cos, sin),
        (x[:0], cos, sin),
        (x[0, 0], cos[None], sin[None]),  # the result would be larger than x
        (x[:, :1], cos.expand(3, 5, 16), sin.expand(3, 5, 16)),
        (x.as_subclass(Subclass), cos, sin),
        (x, cos.as_subclass(Subclass), sin),
        (x, cos.to("meta"), sin),
        (x, cos.clone().requires_grad_(), sin),
        (torch.complex(x, x).conj().imag, cos, sin),
    ]
    for one in refused:
        assert not kernel.supports(*one)


@pytest.mark.parametrize("leading", [(0,), (2, 0)])
def test_nothing_turns_into_nothing(leading):
    x, cos, sin, _ = inputs(*leading)
    assert rotate(x, cos, sin, interleaved=True).shape == x.shape


@of_torch_itself
def test_torch_func_and_forward_mode_get_the_formula():
    x, cos, sin, _ = inputs(4)

    def loss(x):
        assert not kernel.supports(x, cos, sin)
        return rotate(x, cos, sin, interleaved=True).pow(3).sum()

    grad = torch.func.grad(loss)
    assert torch.func.vmap(grad)(x).shape == x.shape
    with forward_ad.dual_level():
        assert not kernel.supports(forward_ad.make_dual(x, torch.ones_like(x)), cos, sin)


@pytest.mark.usefixtures("shapes_unchecked")
@every_dtype
@pytest.mark.parametrize("interleaved", [True, False])
def test_compiled_code_holds_it_as_one_op_for_every_size(interleaved, dtype):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rotate, backend=counter, fullgraph=True)
    for batch, seq in ((2, 70), (3, 65), (2, 64), (5, 3)):
        x, cos, sin, grad = inputs(batch, 4, seq=seq, dtype=dtype)
        both = run(compiled, x, cos, sin, grad, interleaved), run(kernel.rotate, x, cos, sin, grad, interleaved)
        for actual, expected in zip(*both, strict=True):
            assert torch.equal(actual, expected)
            assert actual.stride() == expected.stride()
    assert counter.frame_count == 2
    assert "prenorm.rotate" in counter.graphs[-1].code


@of_torch_itself
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("shape", [(2, 3), (3,), (), (2, 1, 3)])
def test_generated_code_gives_the_same_numbers(shape):
    x, cos, sin, grad = inputs(*shape, dtype=torch.bfloat16)
    compiled = torch.compile(rotate, fullgraph=True)
    both = run(compiled, x, cos, sin, grad, True), run(kernel.rotate, x, cos, sin, grad, True)
    for actual, expected in zip(*both, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.usefixtures("shapes_unchecked")
def test_neither_exported_code_nor_one_token_nor_torch_func_holds_it():
    class Rotate(torch.nn.Module):
        def forward(self, x, cos, sin):
            return rotate(x, cos, sin, interleaved=True)

    x, cos, sin, _ = inputs(2, 3)
    assert "prenorm" not in torch.export.export(Rotate(), (x, cos, sin)).graph_module.code
    counter = CompileCounterWithBackend("eager")
    torch.compile(Rotate(), fullgraph=True, backend=counter)(x[..., :1, :], cos[:1], sin[:1])
    assert "prenorm" not in counter.graphs[-1].code
    slope = torch.func.grad(lambda x: rotate(x, cos, sin, interleaved=True).square().sum())
    torch.testing.assert_close(torch.compile(slope, fullgraph=True, backend="aot_eager")(x), slope(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14's own check looks
@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (3,), ()])
def test_the_op_is_what_its_description_for_compilers_says(shape, backwards):
    x, cos, sin, _ = inputs(*shape)
    torch.library.opcheck(torch.ops.prenorm.rotate.default, (x.requires_grad_(), cos, sin, True, backwards))


@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_code_whose_angles_need_gradients_holds_the_formula():
    x, cos, sin, _ = inputs(2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rotate, fullgraph=True, backend=counter)
    slopes = []
    for function in (compiled, rotate):
        leaf = cos.clone().requires_grad_()
        function(x, leaf, sin, interleaved=True).square().sum().backward()
        slopes.append(leaf.grad)
    torch.testing.assert_close(*slopes)
    assert "prenorm" not in counter.graphs[-1].code
