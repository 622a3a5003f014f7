import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import use_backend
from prenorm.kernels.cpu import cross_entropy as kernel
from prenorm.kernels.cpu import native
from prenorm.ops import backends
from prenorm.ops.cross_entropy import losses_and_gradient

from ...oracle.inputs import integers, normal, seeds
from ...oracle.tolerance import array, assert_accurate, assert_rounded_once

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

dtypes = st.sampled_from(list(kernel.DTYPES))
every_dtype = pytest.mark.parametrize("dtype", list(kernel.DTYPES))
# Around the vectors (4 to 16 numbers), the steps (2 vectors) and the chunks (64 steps), and nothing in particular.
vocabs = st.sampled_from([1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 777, 2047, 2048, 2049, 4100])


def inputs(rows, vocab, *, dtype=torch.float32, seed=0, size=3.0):
    """Logits, and targets of which about a third are left out."""
    targets = integers(rows, limit=vocab, seed=seed).where(integers(rows, limit=3, seed=seed + 1) > 0, -100)
    return (size * normal(rows, vocab, seed=seed)).to(dtype), targets


def run(logits, targets, ignore_index=-100):
    """The losses and the gradient, by the kernel."""
    assert kernel.supports(logits, targets)
    gradient = logits.clone()
    return kernel.cross_entropy_and_grad_(gradient, targets, ignore_index, True), gradient


def oracle(logits, targets):
    """In float64."""
    x, kept = array(logits), (targets != -100).numpy()
    x = x - x.max(-1, keepdims=True)
    exponentials = np.exp(x)
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    at = np.arange(len(x)), np.where(kept, targets.numpy(), 0)
    losses = np.where(kept, np.log(exponentials.sum(-1)) - x[at], 0)
    probabilities[at] -= 1
    return losses, probabilities * kept[:, None]


@given(st.integers(0, 80), vocabs, dtypes, seeds, st.sampled_from([0.01, 3.0, 100.0]))
def test_losses_and_gradients_are_right(rows, vocab, dtype, seed, size):
    logits, targets = inputs(rows, vocab, dtype=dtype, seed=seed, size=size)
    if logits.numel() == 0:
        return  # the formula's
    losses, gradient = run(logits, targets)
    expected = oracle(logits, targets)
    assert losses.dtype == torch.float32
    np.testing.assert_allclose(array(losses), expected[0], rtol=1e-6, atol=1e-6)
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(array(gradient), expected[1], rtol=eps, atol=1e-6)
    assert not gradient[targets == -100].any()
    assert torch.equal(kernel.cross_entropy_and_grad_(logits.clone(), targets, -100, False), losses)


@every_dtype
def test_another_default_device_changes_nothing(dtype):
    logits, targets = inputs(5, 100, dtype=dtype)
    with torch.device("meta"):
        losses, gradient = run(logits, targets)
    for one, other in zip((losses, gradient), run(logits, targets), strict=True):
        assert torch.equal(one, other)


@every_dtype
def test_they_are_as_accurate_as_the_formulas(dtype):
    logits, targets = inputs(100, 32_000, dtype=dtype)
    losses, gradient = run(logits, targets)
    with use_backend("reference"):
        plain_losses, plain = losses_and_gradient(logits.clone(), targets, -100, True)
    expected = oracle(logits, targets)
    assert_accurate(losses, expected[0], plain_losses)
    assert_accurate(gradient, expected[1], plain)
    assert_rounded_once(gradient, expected[1])


@every_dtype
def test_equal_logits_over_a_large_vocabulary_are_summed_accurately(dtype):
    # Equal numbers are the worst of a long sum in float32: every addition rounds the same way.
    logits, targets = torch.full((2, 1_000_003), 0.7).to(dtype), torch.tensor([5, 1_000_002])
    logits[:, 0] = 1
    losses, gradient = run(logits, targets)
    expected = oracle(logits, targets)
    np.testing.assert_allclose(array(losses), expected[0], rtol=1e-7)
    np.testing.assert_allclose(array(gradient[:, 1]), expected[1][:, 1], rtol=2 * torch.finfo(dtype).eps)


@every_dtype
def test_huge_logits_do_not_overflow(dtype):
    logits = torch.full((2, 40), -1e30, dtype=dtype)
    logits[:, 7] = 1e30
    losses, gradient = run(logits, torch.tensor([7, 8]))
    assert losses[0] == 0
    assert losses[1] > 1e30
    assert gradient[0].count_nonzero() == 0
    assert gradient[1].tolist() == [0.0] * 7 + [1.0, -1.0] + [0.0] * 31


@every_dtype
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 40, 76])
def test_a_bad_number_is_the_formulas_and_spoils_its_own_row_alone(bad, place, dtype):
    logits, _ = inputs(6, 77, dtype=dtype)
    targets = torch.tensor([3, 40, 76, 0, -100, 5])
    good = run(logits, targets)
    logits[2, place] = bad
    logits[3] = bad
    spoilt = run(logits, targets)
    with use_backend("reference"):
        plain = losses_and_gradient(logits.clone(), targets, -100, True)
    for actual, before, formula in zip(spoilt, good, plain, strict=True):
        assert torch.equal(actual[[0, 1, 4, 5]], before[[0, 1, 4, 5]])
        torch.testing.assert_close(actual, formula, equal_nan=True)


def test_a_row_without_a_target_has_no_say_whatever_it_holds():
    logits, targets = inputs(3, 50)
    logits[1], targets[1] = torch.nan, -100
    losses, gradient = run(logits, targets)
    assert losses[1] == 0
    assert not gradient[1].any()


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_neither_threads_nor_other_rows_change_a_bit(count, dtype):
    logits, targets = inputs(101, 999, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [torch.cat(parts) for parts in zip(*map(run, logits.split(1), targets.split(1)), strict=True)]
        torch.set_num_threads(count)
        for actual, expected in zip(run(logits, targets), alone, strict=True):
            assert torch.equal(actual, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_another_mark_may_mean_ignore_and_targets_may_have_gaps(kind):
    logits, targets = inputs(20, 30)
    expected = run(logits, targets)
    spaced = torch.stack((targets, targets), dim=-1).to(kind)[:, 0]
    for actual, wanted in zip(run(logits, spaced.where(spaced != -100, 99), 99), expected, strict=True):
        assert torch.equal(actual, wanted)


class Subclass(torch.Tensor):
    """A tensor of a class of its own."""


def test_it_takes_what_it_can_and_nothing_else():
    logits, targets = inputs(4, 6)
    assert kernel.supports(logits, targets)
    refused = [
        (logits.double(), targets),
        (logits.half(), targets),
        (logits[:, ::2], targets),
        (logits.t(), targets),
        (logits[:0], targets[:0]),
        (logits, targets.to("meta")),
        (logits.as_subclass(Subclass), targets),
        (torch._neg_view(logits), targets),
    ]
    for one in refused:
        assert not kernel.supports(*one)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")  # by PyTorch's compiler
@pytest.mark.usefixtures("shapes_unchecked")
@every_dtype
def test_compiled_code_gives_the_same_numbers(dtype):
    x, weight = normal(6, 8, dtype=dtype).requires_grad_(), normal(50, 8, seed=1, dtype=dtype).requires_grad_()
    targets = integers(6, limit=50)
    torch._dynamo.reset()
    compiled = torch.compile(F.linear_cross_entropy, backend="aot_eager", fullgraph=True)
    losses = compiled(x, weight, targets), F.linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(*losses)
    gradients = (torch.autograd.grad(loss, (x, weight)) for loss in losses)
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_op_takes_it():
    logits, targets = inputs(4, 6)
    assert backends.choose("cross_entropy", logits, targets) is kernel.cross_entropy_and_grad_
    with use_backend("reference"):
        assert backends.choose("cross_entropy", logits, targets) is None
