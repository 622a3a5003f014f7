import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import RangeError, ShapeError
from prenorm.ops import cross_entropy as home

from ..oracle import formulas
from ..oracle.inputs import dtypes, integers, layouts, leadings, normal, seeds, sizes
from ..oracle.memory import elements_held
from ..oracle.tolerance import array, assert_accurate, assert_exact, assert_rounding_alone

LOSS_TERMS = 64  # a sum over the vocabulary and one over the rows
vocabs = st.integers(1, 7)


def some_targets(*shape, vocab, seed=0):
    """Targets of which about a third are ignored."""
    return integers(*shape, limit=vocab, seed=seed).where(integers(*shape, limit=3, seed=seed + 1) > 0, -100)


@pytest.fixture
def small_chunks(monkeypatch):
    """Three rows of a vocabulary of seven at a time."""
    monkeypatch.setattr(home, "CHUNK_ELEMENTS", 3 * 7)


@given(leadings, vocabs, dtypes, layouts, seeds)
def test_it_is_the_mean_of_minus_log_softmax_at_the_targets(leading, vocab, dtype, layout, seed):
    logits = normal(*leading, vocab, seed=seed, dtype=dtype, layout=layout)
    targets = some_targets(*leading, vocab=vocab, seed=seed)
    loss = F.cross_entropy(logits, targets)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)  # also for bfloat16 logits nothing is rounded to it
    assert_rounding_alone(loss, formulas.cross_entropy(array(logits), targets.numpy()), loss.dtype, terms=LOSS_TERMS)


@given(leadings, vocabs, seeds)
def test_pytorchs_cross_entropy_agrees(leading, vocab, seed):
    logits, targets = normal(*leading, vocab, seed=seed), some_targets(*leading, vocab=vocab, seed=seed)
    if (targets != -100).any():  # of nothing, PyTorch's mean is NaN and ours 0
        pytorchs = torch.nn.functional.cross_entropy(logits.reshape(-1, vocab), targets.reshape(-1))
        assert_exact(F.cross_entropy(logits, targets), array(pytorchs))


@given(leadings, sizes, vocabs, layouts, st.integers(1, 60), seeds)
def test_the_linear_form_is_cross_entropy_of_linear_for_chunks_of_any_size(
    leading, d_model, vocab, layout, chunk, seed
):
    x = normal(*leading, d_model, seed=seed, layout=layout).requires_grad_()
    weight = normal(vocab, d_model, seed=seed + 1, layout=layout).requires_grad_()
    targets = some_targets(*leading, vocab=vocab, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "CHUNK_ELEMENTS", chunk)
        losses = F.linear_cross_entropy(x, weight, targets), F.cross_entropy(F.linear(x, weight), targets)
    assert_exact(losses[0], array(losses[1]))
    gradients = [torch.autograd.grad(3 * loss, (x, weight)) for loss in losses]
    for actual, wanted in zip(*gradients, strict=True):
        assert_exact(actual, array(wanted))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7])
@pytest.mark.usefixtures("small_chunks")
def test_rows_on_both_sides_of_a_chunk_boundary_count_once(rows):
    x, weight, targets = normal(rows, 2), normal(7, 2, seed=1), integers(rows, limit=7)
    assert_exact(
        F.linear_cross_entropy(x, weight, targets), formulas.cross_entropy(array(x @ weight.T), targets.numpy())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_chunks")
def test_the_linear_form_is_as_accurate_as_the_plain_one(dtype):
    x, weight = normal(40, 16, dtype=dtype).requires_grad_(), normal(7, 16, seed=1, dtype=dtype).requires_grad_()
    targets = some_targets(40, vocab=7)
    plain, loss = F.cross_entropy(F.linear(x, weight), targets), F.linear_cross_entropy(x, weight, targets)
    assert loss.dtype == torch.float32
    exact_x, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    exact = F.cross_entropy(F.linear(exact_x, exact_weight), targets)
    assert_exact(exact, formulas.cross_entropy(array(exact_x) @ array(exact_weight).T, targets.numpy()))
    assert_rounding_alone(loss, array(exact), dtype, terms=LOSS_TERMS)
    oracle = torch.autograd.grad(exact, (exact_x, exact_weight))
    gradients = (torch.autograd.grad(mean, (x, weight)) for mean in (loss, plain))
    for actual, plains, wanted in zip(*gradients, oracle, strict=True):
        assert_accurate(actual, array(wanted), plains)


def test_without_any_target_the_loss_and_its_gradients_are_zero():
    x, weight = normal(4, 3).requires_grad_(), normal(5, 3).requires_grad_()
    targets = torch.full((4,), -100)
    for loss in (F.cross_entropy(F.linear(x, weight), targets), F.linear_cross_entropy(x, weight, targets)):
        assert loss == 0
        assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (x, weight)))


def test_an_ignored_row_has_no_say_even_with_wild_logits():
    logits = torch.tensor([[1e30, -1e30], [0.0, 0.0]], requires_grad=True)
    loss = F.cross_entropy(logits, torch.tensor([-100, 0]))
    loss.backward()
    assert_rounding_alone(loss, math.log(2), torch.float32, terms=LOSS_TERMS)
    assert logits.grad[0].tolist() == [0, 0]


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[1e30, 0.0], [1e30, 0.0]])
    assert_rounding_alone(F.cross_entropy(logits, torch.tensor([0, 1])), 0.5e30, torch.float32, terms=LOSS_TERMS)


def test_autocast_narrows_the_products_and_nothing_else():
    x, weight = (normal(*shape, dtype=torch.float32).requires_grad_() for shape in ((200, 16), (64, 16)))
    targets, narrow = some_targets(200, vocab=64), (x.detach().bfloat16(), weight.detach().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.linear_cross_entropy(x, weight, targets)
    assert_rounding_alone(loss, array(F.linear_cross_entropy(*narrow, targets)), torch.float32, terms=LOSS_TERMS)
    plain = F.cross_entropy(F.linear(*narrow).float(), targets)
    assert_rounding_alone(loss, array(plain), torch.float32, terms=LOSS_TERMS)
    assert [one.dtype for one in torch.autograd.grad(loss, (x, weight))] == [torch.float32] * 2
    with torch.autocast("cpu", torch.bfloat16):  # float64 stays what it is, as in PyTorch's own products
        wide = F.linear_cross_entropy(x.double(), weight.double(), targets)
    assert_exact(wide, array(F.linear_cross_entropy(x.double(), weight.double(), targets)))


def test_the_meta_device_has_a_loss_too():
    x, weight = (torch.empty(*shape, device="meta", requires_grad=True) for shape in ((3, 4), (5, 4)))
    loss = F.linear_cross_entropy(x, weight, torch.empty(3, dtype=torch.int64, device="meta"))
    assert [one.shape for one in torch.autograd.grad(loss, (x, weight))] == [(3, 4), (5, 4)]


def test_another_mark_may_mean_ignore():
    logits, weight, targets = normal(4, 5), normal(5, 5, seed=1), torch.tensor([0, 1, 4, 1])
    kept = targets != 1
    assert_exact(F.cross_entropy(logits, targets, ignore_index=1), array(F.cross_entropy(logits[kept], targets[kept])))
    assert_exact(
        F.linear_cross_entropy(logits, weight, targets, ignore_index=1),
        array(F.linear_cross_entropy(logits[kept], weight, targets[kept])),
    )


def test_the_logits_of_a_long_sequence_are_never_held_whole(monkeypatch):
    rows, vocab, d_model = 200, 500, 4
    monkeypatch.setattr(home, "CHUNK_ELEMENTS", 10 * vocab)
    x, weight = normal(rows, d_model).requires_grad_(), normal(vocab, d_model).requires_grad_()
    targets = integers(rows, limit=vocab)

    whole = elements_held(lambda: F.cross_entropy(F.linear(x, weight), targets))
    assert min(whole) >= rows * vocab  # what the measure says where they are held
    largest, kept = elements_held(lambda: F.linear_cross_entropy(x, weight, targets))
    assert largest <= 10 * vocab
    inputs = rows * d_model + vocab * d_model  # held by the caller too; a second derivative needs them
    assert kept <= inputs + rows + inputs + 1  # the inputs, the targets, the two gradients and the count


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_targets_may_be_int32(dtype):
    logits, targets = normal(3, 5), torch.tensor([4, -100, 0], dtype=dtype)
    assert_exact(F.cross_entropy(logits, targets), formulas.cross_entropy(array(logits), targets.numpy()))
    assert_exact(
        F.linear_cross_entropy(logits, torch.eye(5).double(), targets), array(F.cross_entropy(logits, targets))
    )


@pytest.mark.parametrize("bad", [5, -1, -101])
def test_a_target_outside_the_vocabulary_is_refused_with_the_numbers(bad):
    logits, targets = normal(3, 5), torch.tensor([0, bad, 4])
    message = rf"targets must be in \[0, 5\) or -100, but the targets go from {min(bad, 0)} to {max(bad, 4)}"
    for loss in (F.cross_entropy, lambda x, y: F.linear_cross_entropy(x, torch.eye(5).double(), y)):
        with pytest.raises(RangeError, match=message):
            loss(logits, targets)


@pytest.mark.usefixtures("shapes_unchecked")
def test_one_target_a_row_is_needed():
    for targets in (torch.zeros(4, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="one target a row"):
            F.cross_entropy(normal(3, 5), targets)
        with pytest.raises(ShapeError, match="one target a row"):
            F.linear_cross_entropy(normal(3, 5), normal(6, 5), targets)


@pytest.mark.usefixtures("small_chunks")
def test_their_gradients_are_right():
    x, weight, targets = normal(2, 4, 3).requires_grad_(), normal(7, 3).requires_grad_(), some_targets(2, 4, vocab=7)
    assert torch.autograd.gradcheck(lambda x, w: F.cross_entropy(F.linear(x, w), targets), [x, weight])
    assert torch.autograd.gradcheck(lambda x, w: F.linear_cross_entropy(x, w, targets), [x, weight])
    for frozen in (0, 1):  # each gradient alone
        inputs = [x, weight]
        inputs[frozen] = inputs[frozen].detach()
        assert torch.autograd.gradcheck(lambda x, w: F.linear_cross_entropy(x, w, targets), inputs)
