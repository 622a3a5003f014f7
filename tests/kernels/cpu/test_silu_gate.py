import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from prenorm import use_backend
from prenorm.kernels.cpu import native
from prenorm.kernels.cpu import silu_gate as kernel
from prenorm.ops import backends
from prenorm.ops.swiglu import silu_gate

from ...oracle import formulas
from ...oracle.inputs import layouts, leadings, normal, seeds
from ...oracle.tolerance import array, assert_accurate, assert_rounded_once

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

dtypes = st.sampled_from(list(kernel.DTYPES))
every_dtype = pytest.mark.parametrize("dtype", list(kernel.DTYPES))
# Around the vectors (4 to 16 numbers), the steps (2 vectors), and nothing in particular.
widths = st.sampled_from([1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100])
of_torch_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")


def inputs(*shape, dtype=torch.float32, seed=0, layout="contiguous"):
    """gate, up and the gradient of the result."""
    return tuple(normal(*shape, seed=seed + i, dtype=dtype, layout=layout) for i in range(3))


def run(gate, up, grad):
    """The result and both gradients, by the kernel."""
    leaves = gate.detach().requires_grad_(), up.detach().requires_grad_()
    y = kernel.silu_gate(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


def oracle(gate, up, grad):
    """In float64, with the derivative of silu from the quotient rule."""
    gate, up, grad = array(gate), array(up), array(grad)
    s = 1 / (1 + np.exp(-gate))
    slope = s + gate * s * (1 - s)
    return formulas.silu(gate) * up, grad * up * slope, grad * formulas.silu(gate)


@pytest.fixture
def of_any_size(monkeypatch):
    """As if the kernel were the faster one for few numbers, too."""
    monkeypatch.setattr(kernel, "MIN_NUMEL", 0)


@given(leadings, widths, dtypes, layouts, seeds)
def test_values_and_gradients_are_the_papers(leading, width, dtype, layout, seed):
    given = inputs(*leading, 64, width, dtype=dtype, seed=seed, layout=layout)
    for actual, expected in zip(run(*given), oracle(*given), strict=True):
        assert actual.dtype == dtype
        assert_rounded_once(actual, expected)


@every_dtype
def test_they_are_as_accurate_as_the_formulas(dtype):
    gate, up, grad = inputs(300, 1000, dtype=dtype)
    gate = gate * 5
    leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
    with use_backend("reference"):
        y = silu_gate(*leaves)
    plain = y, *torch.autograd.grad(y, leaves, grad)
    for actual, expected, formula in zip(run(gate, up, grad), oracle(gate, up, grad), plain, strict=True):
        assert_accurate(actual, expected, formula)


@every_dtype
def test_far_out_and_beyond_they_are_the_formulas(dtype):
    ends = [0.0, -0.0, 88.0, -86.0, 1e4, -1e4, 1e38, -1e38, torch.inf, -torch.inf, torch.nan]
    gate = torch.tensor(ends, dtype=dtype).repeat_interleave(4)
    up = torch.tensor([1.0, 0.0, torch.inf, torch.nan], dtype=dtype).repeat(len(ends))
    leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
    with use_backend("reference"):
        y = silu_gate(*leaves)
    for actual, plain in zip(
        run(gate, up, torch.ones_like(up)), (y, *torch.autograd.grad(y, leaves, torch.ones_like(up))), strict=True
    ):
        torch.testing.assert_close(actual, plain.detach(), equal_nan=True, rtol=1e-2, atol=1e-30)


@given(dtypes, st.integers(1, 300), seeds)
def test_a_number_does_not_depend_on_its_neighbours(dtype, count, seed):
    given = inputs(300, dtype=dtype, seed=seed)
    for some, all_of_them in zip(run(*(one[:count] for one in given)), run(*given), strict=True):
        assert torch.equal(some, all_of_them[:count])


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(count, dtype):
    given = inputs(100_003, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(*given)
        torch.set_num_threads(count)
        for actual, expected in zip(run(*given), alone, strict=True):
            assert torch.equal(actual, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 0, 5)])
def test_any_shape_is_right(shape):
    y, *gradients = run(*inputs(*shape))
    assert {one.shape for one in (y, *gradients)} == {shape}


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_alone_is_right(wanted):
    gate, up, grad = inputs(40, 50)
    _, *both = run(gate, up, grad)
    leaves = gate.requires_grad_(wanted[0]), up.requires_grad_(wanted[1])
    kernel.silu_gate(*leaves).backward(grad)
    for leaf, expected in zip(leaves, both, strict=True):
        assert torch.equal(leaf.grad, expected) if leaf.requires_grad else leaf.grad is None


def test_an_expanded_gradient_is_read_rightly():
    gate, up, _ = inputs(5, 40)
    for actual, expected in zip(
        run(gate, up, torch.ones(()).expand(5, 40)), run(gate, up, torch.ones(5, 40)), strict=True
    ):
        assert torch.equal(actual, expected)


def test_gradients_of_gradients_are_right(of_any_size):
    leaves = [one.requires_grad_() for one in inputs(4, 20)]
    wide = [one.detach().double().requires_grad_() for one in leaves]

    def second(gate, up, grad):
        first = torch.autograd.grad(silu_gate(gate, up), (gate, up), grad, create_graph=True)
        return *first, *torch.autograd.grad(
            sum((one.pow(3).sum() for one in first), torch.tensor(0.0)), (gate, up, grad)
        )

    assert backends.choose("silu_gate", *leaves[:2]) is kernel.silu_gate
    assert backends.choose("silu_gate", *wide[:2]) is None  # float64: PyTorch's own gradients of the formula
    for actual, expected in zip(second(*leaves), second(*wide), strict=True):
        torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-4)


def test_a_batch_of_gradients_is_right(of_any_size):
    gate, up, _ = inputs(3, 4)
    whole = torch.autograd.functional.jacobian(lambda gate: silu_gate(gate, up), gate, vectorize=True)
    torch.testing.assert_close(whole, torch.autograd.functional.jacobian(lambda gate: silu_gate(gate, up), gate))


def test_hooks_may_move_what_is_kept_for_the_backward_pass():
    gate, up, grad = inputs(40, 50)
    _, *expected = run(gate, up, grad)
    leaves = gate.requires_grad_(), up.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.t().contiguous().t(), lambda t: t):
        y = kernel.silu_gate(*leaves)
    for actual, wanted in zip(torch.autograd.grad(y, leaves, grad), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_an_input_that_is_changed_before_the_backward_pass_is_noticed():
    gate, up, grad = inputs(4, 5)
    y = kernel.silu_gate(gate.requires_grad_(), up)
    with torch.no_grad():
        up.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(grad)


# --- where the formula runs instead ---


class Subclass(torch.Tensor):
    """A tensor of a class of its own."""


def test_it_takes_what_it_can_and_nothing_else():
    gate, up, _ = inputs(512, 128)
    assert kernel.supports(gate, up)
    assert kernel.supports(gate[:, ::2], up[:, 64:])
    refused = [
        (gate[:255], up[:255]),
        (gate.double(), up.double()),
        (gate.half(), up.half()),
        (gate, up.bfloat16()),
        (gate, up[:1]),
        (gate, up.to("meta")),
        (gate.as_subclass(Subclass), up),
        (gate, up.as_subclass(Subclass)),
        (torch.complex(gate, gate).conj().imag, up),
        (gate, torch.complex(gate, gate).conj().imag),
    ]
    for one in refused:
        assert not kernel.supports(*one)


@of_torch_itself
def test_torch_func_and_forward_mode_get_the_formula(of_any_size):
    gate, up, _ = inputs(4, 5)

    def loss(gate, up):
        assert not kernel.supports(gate, up)
        return silu_gate(gate, up).square().sum()

    wide, grad = (gate.double(), up.double()), torch.func.grad(loss)
    torch.testing.assert_close(torch.func.vmap(grad)(gate, up), torch.func.vmap(grad)(*wide).float())
    with forward_ad.dual_level():
        assert not kernel.supports(forward_ad.make_dual(gate, torch.ones_like(gate)), up)


@pytest.mark.usefixtures("shapes_unchecked", "of_any_size")
def test_compiled_and_exported_code_holds_the_formula():
    class Gate(torch.nn.Module):
        def forward(self, gate, up):
            return silu_gate(gate, up)

    gate, up, grad = inputs(4, 50)
    assert "silu" in torch.export.export(Gate(), (gate, up)).graph_module.code
    torch._dynamo.reset()
    compiled = torch.compile(silu_gate, backend="aot_eager", fullgraph=True)
    leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
    y = compiled(*leaves)
    for actual, expected in zip((y, *torch.autograd.grad(y, leaves, grad)), run(gate, up, grad), strict=True):
        torch.testing.assert_close(actual, expected)


def test_dispatch_modes_see_the_formulas_ops_in_the_backward_pass_too(of_any_size):
    gate, up, grad = inputs(4, 5)
    y = silu_gate(gate.requires_grad_(), up)
    assert "SiluGate" in y.grad_fn.name()
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode():
        y.backward(grad)
        assert not kernel.supports(gate, up)
    assert any("sigmoid" in name for name in seen)
    torch.testing.assert_close(gate.grad, run(gate.detach(), up, grad)[1])
