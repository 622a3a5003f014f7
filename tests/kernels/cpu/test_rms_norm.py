import contextlib
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import prenorm.functional as F
from prenorm import use_backend
from prenorm.kernels.cpu import rms_norm as kernel
from prenorm.ops import backends

from ...oracle import formulas
from ...oracle.inputs import layouts, leadings, normal, seeds
from ...oracle.tolerance import (
    array,
    assert_accurate,
    assert_rounded_once,
    assert_rounding_alone,
    error,
    rms,
)

DTYPES = list(kernel.DTYPES)
EPS = torch.finfo(torch.float32).eps
dtypes = st.sampled_from(DTYPES)
# Around the vectors (4 to 16 numbers), the steps (2 vectors) and the chunks (64 steps), and nothing in particular.
widths = st.sampled_from(
    [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 255, 777, 2047, 2049, 4100]
)
of_torch_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")
every_dtype = pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES)


def gradients_of(x, weight, grad, eps):
    """The oracle: d x and d weight of sum(grad * y), from the derivative of x / r where r = sqrt(mean(x^2) + eps)."""
    r = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    through = grad * weight
    grad_x = through / r - x * (through * x).mean(-1, keepdims=True) / r**3
    return grad_x, (grad * x / r).reshape(-1, x.shape[-1]).sum(0)


def inputs(*shape, dtypes=(torch.float32, torch.float32), seed=0, layout="contiguous"):
    """x, weight and the gradient of the result."""
    x = normal(*shape, seed=seed, dtype=dtypes[0], layout=layout)
    weight = normal(shape[-1], seed=seed + 1, dtype=dtypes[1], layout=layout)
    return x, weight, normal(*shape, seed=seed + 2, dtype=dtypes[0], layout=layout)


def run(x, weight, grad, eps=1e-6):
    """The result and both gradients, by the kernel."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    assert kernel.supports(x, weight)
    y = kernel.rms_norm(x, weight, eps)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


@given(leadings, widths, dtypes, layouts, seeds, st.sampled_from([1e-12, 1e-6, 0.1]))
def test_values_and_gradients_are_the_papers(leading, width, dtypes, layout, seed, eps):
    x, weight, grad = inputs(*leading, 64, width, dtypes=dtypes, seed=seed, layout=layout)
    y, grad_x, grad_weight = run(x, weight, grad, eps)
    assert (y.dtype, grad_x.dtype, grad_weight.dtype) == (x.dtype, x.dtype, weight.dtype)
    assert_rounded_once(y, formulas.rms_norm(array(x), array(weight), eps))
    expected = gradients_of(array(x), array(weight), array(grad), eps)
    if width >= 64:  # fewer numbers have no root mean square to speak of
        assert_rounded_once(grad_x, expected[0])
        assert_rounded_once(grad_weight, expected[1])
    else:  # in a narrow row most of the gradient cancels, and leaves float32's rounding of what was there
        parts = array(grad) * array(weight) / np.sqrt(np.square(array(x)).mean(-1, keepdims=True) + eps)
        assert error(grad_x, expected[0]) <= 8 * EPS * rms(parts) + torch.finfo(x.dtype).eps * rms(expected[0])
        assert_rounding_alone(grad_weight, expected[1], weight.dtype, terms=64)


@every_dtype
def test_they_are_as_accurate_as_the_formulas(dtype, weight_dtype):
    x, weight, grad = inputs(300, 1000, dtypes=(dtype, weight_dtype))
    ours = run(x, weight, grad)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    with use_backend("reference"):
        y = F.rms_norm(*leaves)
    plain = y, *torch.autograd.grad(y, leaves, grad)
    oracle = (
        formulas.rms_norm(array(x), array(weight)),
        *gradients_of(array(x), array(weight), array(grad), 1e-6),
    )
    for actual, expected, formula in zip(ours, oracle, plain, strict=True):
        assert_accurate(actual, expected, formula)


def test_the_gradient_of_the_weight_stays_accurate_over_many_rows():
    # Summed in float32 throughout, 100,000 rows of one sign would lose three digits.
    x = torch.rand(100_000, 64) + 1
    grad = torch.rand(100_000, 64) + 1
    weight = torch.ones(64)
    _, _, grad_weight = run(x, weight, grad)
    oracle = gradients_of(array(x), array(weight), array(grad), 1e-6)[1]
    assert np.abs(array(grad_weight) / oracle - 1).max() < 8 * EPS


@pytest.mark.parametrize("width", [100_003, 1_000_000])
@pytest.mark.parametrize("spread", [0, 1])
def test_a_very_wide_row_is_summed_accurately(width, spread):
    # Equal numbers are the worst of a long sum in float32: every addition rounds the same way.
    x, weight = 0.7 + spread * torch.rand(2, width), torch.ones(width)
    y, grad_x, _ = run(x, weight, x)
    assert np.abs(array(y) / formulas.rms_norm(array(x), array(weight)) - 1).max() < 4 * EPS
    # grad = x, so that all but a trace of the gradient cancels: what is left measures the sums.
    assert np.abs(array(grad_x)).max() < 32 * EPS


@every_dtype
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-3, 1e18, 1e30, 1e37])
def test_tiny_and_huge_inputs_come_out_right(size, dtype, weight_dtype):
    x, weight, grad = inputs(8, 515, dtypes=(dtype, weight_dtype))
    x = (x.double() * size).to(dtype)
    y, grad_x, grad_weight = run(x, weight, grad)
    assert_rounded_once(y, formulas.rms_norm(array(x), array(weight)))
    expected = gradients_of(array(x), array(weight), array(grad), 1e-6)
    assert_rounded_once(grad_weight, expected[1])
    if size < 1e30:  # beyond, the gradient's own numbers are too small for the dtype
        assert_rounded_once(grad_x, expected[0])


@every_dtype
def test_the_largest_numbers_leave_no_infinity_in_the_gradient(dtype, weight_dtype):
    x, weight, grad = torch.full((4, 515), 1e38), torch.full((515,), 2.0), torch.ones(4, 515)
    x[:, ::2] /= 2
    y, grad_x, grad_weight = run(x.to(dtype), weight.to(weight_dtype), grad.to(dtype))
    assert_rounded_once(y, formulas.rms_norm(array(x.to(dtype)), array(weight)))
    assert grad_x.abs().max() < 1e-37  # as 1 / x
    assert_rounded_once(grad_weight, gradients_of(array(x.to(dtype)), array(weight), array(grad), 1e-6)[1])


@every_dtype
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 40, 76])
def test_a_bad_number_spoils_its_own_row_alone(bad, place, dtype, weight_dtype):
    x, weight, grad = inputs(6, 77, dtypes=(dtype, weight_dtype))
    good = run(x, weight, grad)
    x[2, place] = bad
    y, grad_x, _ = run(x, weight, grad)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(y[others], good[0][others])
    assert torch.equal(grad_x[others], good[1][others])
    with use_backend("reference"):  # in the row itself NaN and infinity come out as they do from the formula
        torch.testing.assert_close(y[2], F.rms_norm(x, weight)[2], equal_nan=True)


def test_bfloat16_is_rounded_as_pytorch_rounds():
    # Every bfloat16 times a float32 weight, in a row whose root mean square is 1: all of ties, carries, the largest
    # numbers, denormal ones, infinities and NaN.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    weight = bits.view(torch.bfloat16).float() * 1.00390625  # times 1 + 2^-8: halfway between two bfloat16
    weight[0] = torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32)  # a NaN that rounding up makes a zero
    x = torch.ones(1, len(weight), dtype=torch.bfloat16)
    y = kernel.rms_norm(x, weight, 0.0)
    assert torch.equal(y[0].isnan(), weight.isnan())
    expected = weight.to(torch.bfloat16)
    assert torch.equal(y[0].nan_to_num(), expected.nan_to_num())


@given(dtypes, widths, st.integers(1, 70), seeds)
def test_a_row_does_not_depend_on_the_rows_beside_it(dtypes, width, rows, seed):
    x, weight, grad = inputs(70, width, dtypes=dtypes, seed=seed)
    y, grad_x, _ = run(x, weight, grad)
    few = run(x[:rows], weight, grad[:rows])
    assert torch.equal(few[0], y[:rows])
    assert torch.equal(few[1], grad_x[:rows])


@every_dtype
@pytest.mark.parametrize("width", [2048, 2049])
def test_a_row_does_not_depend_on_the_size_of_the_result(width, dtype, weight_dtype):
    # Results above 24 MiB are written around the caches, where the rows lie as that needs it.
    x, weight, grad = inputs(7, width, dtypes=(dtype, weight_dtype))
    y, grad_x, _ = run(x, weight, grad)
    times = 25 * 2**20 // y.nbytes + 1
    large = run(x.repeat(times, 1), weight, grad.repeat(times, 1))
    assert torch.equal(large[0].view(times, 7, width), y.expand(times, 7, width))
    assert torch.equal(large[1].view(times, 7, width), grad_x.expand(times, 7, width))


@every_dtype
def test_the_same_run_twice_gives_the_same_bits(dtype, weight_dtype):
    x, weight, grad = inputs(500, 300, dtypes=(dtype, weight_dtype))
    for first, second in zip(run(x, weight, grad), run(x, weight, grad), strict=True):
        assert torch.equal(first, second)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_rows(count, dtype, weight_dtype):
    x, weight, grad = inputs(601, 200, dtypes=(dtype, weight_dtype))  # enough for 5 threads, and no multiple
    with threads(1):
        alone = run(x, weight, grad)
    with threads(count):
        together = run(x, weight, grad)
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])
    assert_rounded_once(together[2], gradients_of(array(x), array(weight), array(grad), 1e-6)[1])


def test_threads_of_python_may_share_it():
    x, weight, grad = inputs(300, 200)
    alone = run(x, weight, grad)
    results: list[Any] = [None] * 4

    def work(i):
        results[i] = run(x, weight, grad)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        assert torch.equal(result[0], alone[0])
        assert torch.equal(result[1], alone[1])


@pytest.mark.parametrize(("for_x", "for_weight"), [(True, False), (False, True)])
@every_dtype
def test_only_the_gradient_that_is_wanted_is_computed(for_x, for_weight, dtype, weight_dtype):
    x, weight, grad = inputs(40, 50, dtypes=(dtype, weight_dtype))
    _, grad_x, grad_weight = run(x, weight, grad)
    x.requires_grad_(for_x)
    weight.requires_grad_(for_weight)
    kernel.rms_norm(x, weight, 1e-6).backward(grad)
    assert torch.equal(x.grad, grad_x) if for_x else x.grad is None
    assert torch.equal(weight.grad, grad_weight) if for_weight else weight.grad is None


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 2049)])
def test_no_rows_give_no_rows(shape):
    y, grad_x, grad_weight = run(*inputs(*shape))
    assert y.shape == grad_x.shape == shape
    assert torch.equal(grad_weight, torch.zeros(shape[-1]))


def test_rows_without_numbers_are_left_to_the_formula():
    assert not kernel.supports(torch.ones(3, 0), torch.ones(0))
    assert F.rms_norm(torch.ones(3, 0), torch.ones(0)).shape == (3, 0)


def test_an_expanded_gradient_is_read_rightly():
    x, weight, _ = inputs(5, 40)
    for actual, expected in zip(
        run(x, weight, torch.ones(()).expand(5, 40)), run(x, weight, torch.ones(5, 40)), strict=True
    ):
        assert torch.equal(actual, expected)


def test_gradients_of_gradients_are_right():
    x, weight, grad = (t.requires_grad_() for t in inputs(4, 20))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, grad)]

    def second(x, weight, grad):
        first = torch.autograd.grad(F.rms_norm(x, weight, eps=0.1), (x, weight), grad, create_graph=True)
        loss = first[0].pow(3).sum() + first[1].pow(3).sum()
        return *first, *torch.autograd.grad(loss, (x, weight, grad))

    assert backends.choose("rms_norm", x, weight) is kernel.rms_norm
    assert backends.choose("rms_norm", *wide[:2]) is None  # float64: PyTorch's own gradients of the formula
    for actual, expected in zip(second(x, weight, grad), second(*wide), strict=True):
        torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-4)


def test_a_batch_of_gradients_is_right():
    x, weight, _ = inputs(3, 4)
    x.requires_grad_()
    whole = torch.autograd.functional.jacobian(lambda x: F.rms_norm(x, weight), x, vectorize=True)
    one_by_one = torch.autograd.functional.jacobian(lambda x: F.rms_norm(x, weight), x)
    torch.testing.assert_close(whole, one_by_one)


def test_hooks_may_move_what_is_kept_for_the_backward_pass():
    x, weight, grad = inputs(40, 50)
    _, grad_x, grad_weight = run(x, weight, grad)
    leaves = x.requires_grad_(), weight.requires_grad_()

    def transposed(t):
        return t.t().contiguous().t() if t.ndim == 2 else t.clone()

    with torch.autograd.graph.saved_tensors_hooks(transposed, lambda t: t):
        y = kernel.rms_norm(*leaves, 1e-6)
    for actual, expected in zip(torch.autograd.grad(y, leaves, grad), (grad_x, grad_weight), strict=True):
        assert torch.equal(actual, expected)


def test_an_input_that_is_changed_before_the_backward_pass_is_noticed():
    x, weight, grad = inputs(4, 5)
    leaf = x.requires_grad_()
    y = kernel.rms_norm(leaf, weight, 1e-6)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(grad)


def test_inference_tensors_are_fine():
    x, weight, _ = inputs(4, 5)
    with torch.inference_mode():
        y = kernel.rms_norm(x.clone(), weight, 1e-6)
        assert kernel.supports(x.clone(), weight)
    assert torch.equal(y, kernel.rms_norm(x, weight, 1e-6))


def test_autocast_changes_nothing():
    x, weight, _ = inputs(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(F.rms_norm(x, weight), kernel.rms_norm(x, weight, 1e-6))
        assert F.rms_norm(x.bfloat16(), weight).dtype == torch.bfloat16


# --- where the formula runs instead ---


def chosen(x, weight):
    return backends.choose("rms_norm", x, weight) is kernel.rms_norm


def test_ordinary_tensors_get_the_kernel():
    x, weight, _ = inputs(4, 5)
    assert chosen(x, weight)
    assert chosen(x.requires_grad_(), torch.nn.Parameter(weight))
    assert chosen(x[:, ::2], weight[::2])


def test_other_dtypes_devices_and_widths_are_left_to_the_formula():
    x, weight, _ = inputs(4, 5)
    assert not chosen(x.double(), weight.double())
    assert not chosen(x.half(), weight.half())
    assert not chosen(x, weight.bfloat16())
    assert not chosen(x.to("meta"), weight.to("meta"))
    assert not kernel.supports(x, weight.to("meta"))
    assert not kernel.supports(x, weight[:1])
    assert not kernel.supports(x, weight[None])


def test_numbers_that_are_negated_when_read_are_left_to_the_formula():
    numbers = torch.complex(*inputs(2, 4, 5)[0]).conj().imag
    assert numbers.is_neg()
    weight = torch.ones(5)
    assert not chosen(numbers, weight)
    torch.testing.assert_close(F.rms_norm(numbers, weight), F.rms_norm(numbers.clone(), weight))
    assert not chosen(weight, numbers[0])
    x, weight, grad = inputs(4, 5)
    _, grad_x, _ = run(x, weight, -grad)
    leaf = x.requires_grad_()
    negated = torch._neg_view(grad)  # contiguous too, so that no copy makes it right
    torch.testing.assert_close(torch.autograd.grad(kernel.rms_norm(leaf, weight, 1e-6), leaf, negated)[0], grad_x)


class Subclass(torch.Tensor):
    pass


def test_subclasses_are_left_to_the_formula_and_stay_what_they_are():
    x, weight, _ = inputs(4, 5)
    special = x.as_subclass(Subclass)
    assert not chosen(special, weight)
    assert not chosen(x, weight.as_subclass(Subclass))
    assert type(F.rms_norm(special, weight)) is Subclass


def test_fake_tensors_are_left_to_the_formula():
    x, weight, _ = inputs(4, 5)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x), mode.from_tensor(weight)
        assert not chosen(*fake)
        assert F.rms_norm(*fake).shape == (4, 5)
    assert not chosen(*fake)


def test_dispatch_modes_see_the_formulas_ops():
    x, weight, grad = inputs(4, 5)
    traced = make_fx(lambda x, weight: F.rms_norm(x, weight))(x, weight)
    assert "rsqrt" in traced.code
    with FlopCounterMode(display=False):
        assert not chosen(x, weight)
    # ... in the backward pass too, where the mode came later.
    y = F.rms_norm(x.requires_grad_(), weight)
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode():
        y.backward(grad)
    assert any("rsqrt" in name for name in seen)
    torch.testing.assert_close(x.grad, run(x.detach(), weight, grad)[1])


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace_method. is deprecated")
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_trace_holds_the_formula():
    x, weight, _ = inputs(4, 5)
    traced = torch.jit.trace(lambda x, weight: F.rms_norm(x, weight), (x, weight))
    longer = inputs(6, 5, seed=9)[0]
    torch.testing.assert_close(traced(longer, weight), F.rms_norm(longer, weight))


@of_torch_itself
def test_torch_func_gets_the_formula():
    x, weight, _ = inputs(4, 5)

    def loss(x, weight):
        assert not chosen(x, weight)
        return F.rms_norm(x, weight).square().sum()

    wide = x.double(), weight.double()
    grad = torch.func.grad(loss)
    torch.testing.assert_close(grad(x, weight), grad(*wide).float())
    every_row = torch.func.vmap(grad, in_dims=(0, None))
    torch.testing.assert_close(every_row(x, weight), every_row(*wide).float())
    slope = torch.func.jvp(lambda x: loss(x, weight), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(slope, grad(x, weight).sum())


@of_torch_itself
def test_forward_mode_differentiation_gets_the_formula():
    x, weight, _ = inputs(4, 5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert not chosen(dual, weight)
        slope = forward_ad.unpack_dual(F.rms_norm(dual, weight)).tangent
    wide = x.double().requires_grad_()
    step = 1e-6
    with torch.no_grad():
        difference = F.rms_norm(wide + step, weight.double()) - F.rms_norm(wide - step, weight.double())
    torch.testing.assert_close(slope, (difference / (2 * step)).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_code_holds_the_formula_whole_and_gives_the_same_numbers():
    x, weight, grad = inputs(4, 50)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph.code)
        return graph.forward

    compiled = torch.compile(F.rms_norm, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), F.rms_norm(x, weight))
    assert "rsqrt" in graphs[0]
    torch._dynamo.reset()
    compiled = torch.compile(F.rms_norm, backend="aot_eager", fullgraph=True)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = compiled(*leaves)
    for actual, expected in zip((y, *torch.autograd.grad(y, leaves, grad)), run(x, weight, grad), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.usefixtures("shapes_unchecked")
def test_an_exported_program_holds_the_formula():
    class Norm(torch.nn.Module):
        def forward(self, x, weight):
            return F.rms_norm(x, weight)

    x, weight, _ = inputs(4, 5)
    program = torch.export.export(Norm(), (x, weight))
    assert "rsqrt" in program.graph_module.code
    torch.testing.assert_close(program.module()(x, weight), F.rms_norm(x, weight))
