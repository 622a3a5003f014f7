import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import ConfigError, ShapeError, use_backend
from prenorm.kernels.cpu.blocked_attention import blocked_attention

from ..oracle import formulas
from ..oracle.inputs import layouts, mask_of, normal, seeds, seqs
from ..oracle.tolerance import array, assert_accurate, assert_exact

BACKENDS = ("auto", "reference")
batches = st.sampled_from([(), (1,), (3,), (2, 3), (0,)])  # the dims before (heads, seq, head_dim)
groups = st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (3, 1)])  # query heads, key heads


def inputs(batch, heads, kv_heads, q_seq, kv_seq, *, seed=0, dtype=torch.float64, layout="contiguous"):
    """A query, a key and a value, head_dim 4 and value_dim 3."""
    shapes = [(heads, q_seq, 4), (kv_heads, kv_seq, 4), (kv_heads, kv_seq, 3)]
    return [normal(*batch, *shape, seed=seed + i, dtype=dtype, layout=layout) for i, shape in enumerate(shapes)]


def oracle(q, k, v, allowed=True):
    """`formulas.attention` for every row of the batch."""
    *batch, heads, q_seq, _ = q.shape
    allowed = np.broadcast_to(allowed, (*batch, heads, q_seq, k.shape[-2]))
    out = np.empty((*batch, heads, q_seq, v.shape[-1]))
    for row in np.ndindex(*batch):
        out[row] = formulas.attention(array(q)[row], array(k)[row], array(v)[row], allowed[row])
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@given(batches, groups, seqs, seqs, layouts, seeds)
def test_it_is_the_papers_formula(backend, batch, heads, q_seq, kv_seq, layout, seed):
    q, k, v = inputs(batch, *heads, q_seq, kv_seq, seed=seed, layout=layout)
    with use_backend(backend):
        assert_exact(F.scaled_dot_product_attention(q, k, v), oracle(q, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
@given(batches, groups, seqs, seqs, st.none() | st.integers(1, 8), seeds)
def test_causal_and_window_go_by_place_counted_from_the_end(backend, batch, heads, q_seq, kv_seq, window, seed):
    q, k, v = inputs(batch, *heads, q_seq, kv_seq, seed=seed)
    allowed = formulas.may_attend(q_seq, kv_seq, causal=True, window=window)
    with use_backend(backend):
        assert_exact(F.scaled_dot_product_attention(q, k, v, causal=True, window=window), oracle(q, k, v, allowed))


mask_kinds = st.sampled_from(["q kv", "batch 1 q kv", "batch 1 1 kv", "1 heads q kv", "batch heads q kv"])


def mask_like(kind, scores_shape, seed):
    """A random mask of one of the kinds."""
    *batch, heads, q_seq, kv_seq = scores_shape
    shape = {
        "q kv": (q_seq, kv_seq),
        "batch 1 q kv": (*batch, 1, q_seq, kv_seq),
        "batch 1 1 kv": (*batch, 1, 1, kv_seq),
        "1 heads q kv": (*[1] * len(batch), heads, q_seq, kv_seq),
        "batch heads q kv": scores_shape,
    }[kind]
    return mask_of(*shape, seed=seed)


@pytest.mark.parametrize("backend", BACKENDS)
@given(batches, groups, seqs, seqs, mask_kinds, st.booleans(), seeds)
def test_a_mask_may_have_every_shape_that_the_rule_names(backend, batch, heads, q_seq, kv_seq, kind, causal, seed):
    q, k, v = inputs(batch, *heads, q_seq, kv_seq, seed=seed)
    mask = mask_like(kind, (*batch, heads[0], q_seq, kv_seq), seed)
    allowed = mask.numpy() & formulas.may_attend(q_seq, kv_seq, causal=causal)
    with use_backend(backend):
        assert_exact(F.scaled_dot_product_attention(q, k, v, mask, causal=causal), oracle(q, k, v, allowed))


@given(batches, groups, seqs, seqs, st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), seeds)
def test_the_kernel_is_as_accurate_as_the_formula(batch, heads, q_seq, kv_seq, dtype, masked, seed):
    q, k, v = inputs((*batch, 32), *heads, q_seq, kv_seq, seed=seed, dtype=dtype)
    mask = mask_of(q_seq, kv_seq, seed=seed) if masked else None
    with use_backend("reference"):
        plain = F.scaled_dot_product_attention(q, k, v, mask)
    y = F.scaled_dot_product_attention(q, k, v, mask)
    assert_accurate(y, oracle(q, k, v, True if mask is None else mask.numpy()), plain)


def test_pytorchs_attention_agrees():
    q, k, v = inputs((2,), 4, 4, 5, 5)
    pytorchs = torch.nn.functional.scaled_dot_product_attention
    for causal in (False, True):
        for backend in BACKENDS:
            with use_backend(backend):
                y = F.scaled_dot_product_attention(q, k, v, causal=causal)
            assert_exact(y, array(pytorchs(q, k, v, is_causal=causal)))


@given(groups, seqs, seeds)
def test_a_group_of_neighbouring_query_heads_shares_a_key_head(heads, seq, seed):
    q, k, v = inputs((2,), *heads, seq, seq, seed=seed)
    group = heads[0] // heads[1]
    repeated = [x[:, [head // group for head in range(heads[0])]] for x in (k, v)]
    assert_exact(F.scaled_dot_product_attention(q, k, v), array(F.scaled_dot_product_attention(q, *repeated)))


@pytest.mark.parametrize("backend", BACKENDS)
@given(seqs, seqs, seeds)
def test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient(backend, q_seq, kv_seq, seed):
    q, k, v = (x.requires_grad_() for x in inputs((2,), 4, 2, q_seq, kv_seq, seed=seed))
    mask = mask_of(2, 1, q_seq, kv_seq, seed=seed)
    mask[0, :, 0] = False
    with use_backend(backend):
        y = F.scaled_dot_product_attention(q, k, v, mask)
        (y * normal(*y.shape, seed=seed)).sum().backward()
    empty = ~mask.any(-1, keepdim=True).expand(2, 4, q_seq, 1)
    assert not y.masked_select(empty).any()
    assert not q.grad.masked_select(empty).any()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
    assert not k.grad.masked_select(~mask.any(-2)[..., None]).any()  # nor does a key that nobody sees


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kv_seq", [2, 40])
def test_a_single_causal_query_is_the_last_and_sees_every_key(backend, dtype, kv_seq):
    q, k, v = inputs((2,), 4, 2, 1, kv_seq, dtype=dtype)
    with use_backend(backend):
        causal, plain = (F.scaled_dot_product_attention(q, k, v, causal=causal) for causal in (True, False))
    assert torch.equal(causal, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_before_the_first_key_see_nothing(backend):
    q, k, v = inputs((), 2, 2, 5, 3)
    with use_backend(backend):
        y = F.scaled_dot_product_attention(q, k, v, causal=True)
    assert not y[:, :2].any()
    assert y[:, 2:].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (2, 2, 0, 3), (2, 2, 3, 0), (0, 2, 0, 0)])
def test_without_rows_queries_or_keys_the_answer_is_empty_or_zero(backend, shape):
    batch, heads, q_seq, kv_seq = shape
    q, k, v = (x.requires_grad_() for x in inputs((batch,), heads, 1, q_seq, kv_seq))
    with use_backend(backend):
        y = F.scaled_dot_product_attention(q, k, v)
    y.sum().backward()
    assert y.shape == (batch, heads, q_seq, 3)
    assert not y.any()
    assert not any(x.grad.any() for x in (q, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_keys_even_the_largest_query_gives_zeros(backend):
    q, k = torch.full((2, 3, 4), 3e38), torch.ones(2, 0, 4)
    with use_backend(backend):
        assert not F.scaled_dot_product_attention(q, k, k).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_too_large_for_exp_choose_the_largest(backend, dtype):
    q = torch.tensor([[[1e4, 0.0]]], dtype=dtype)
    k = torch.tensor([[[1e4, 0.0], [-1e4, 0.0]]], dtype=dtype)
    v = torch.tensor([[[1.0], [2.0]]], dtype=dtype)
    with use_backend(backend):
        assert F.scaled_dot_product_attention(q, k, v).item() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_attention_weights_and_keeps_their_mean(backend):
    # With equal weights and values of 1, y is the share of the keys kept over 1 - p: mean 1, variance p / (1 - p) / kv.
    rows, kv_seq, p = 64, 64, 0.25
    q, k, v = torch.zeros(1, rows, 2), torch.zeros(1, kv_seq, 2), torch.ones(1, kv_seq, 1)
    with use_backend(backend):
        y = F.scaled_dot_product_attention(q, k, v, dropout=p)
    variance = p / (1 - p) / kv_seq
    assert abs(y.mean() - 1) < 5 * math.sqrt(variance / rows)
    assert 0.5 * variance < y.var() < 2 * variance


WRONG_MASKS = [
    ((2, 5, 5), "an axis is missing; if it is the heads axis, mask.unsqueeze\\(-3\\) adds it"),  # batch q kv
    ((4, 5, 5), "an axis is missing"),  # heads q kv
    ((5, 4), "mask must be \\(q, kv\\) = \\(5, 5\\)"),
    ((1, 5), "mask must be"),
    ((5,), "mask must be"),
    ((2, 4, 5, 1), "mask must be"),
    ((2, 2, 5, 5), "or have the dims of the scores \\(2, 4, 5, 5\\)"),
    ((3, 1, 5, 5), "but it is \\(3, 1, 5, 5\\)"),
    ((1, 2, 4, 5, 5), "mask must be"),
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "message"), WRONG_MASKS)
def test_a_mask_of_another_shape_is_refused_with_the_rule(backend, shape, message):
    with use_backend(backend), pytest.raises(ShapeError, match=message):
        F.scaled_dot_product_attention(*inputs((2,), 4, 2, 5, 5), torch.ones(shape, dtype=torch.bool))


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ShapeError, match=r"mask must be boolean.*torch.float32; mask.bool\(\)"):
        F.scaled_dot_product_attention(*inputs((), 1, 1, 2, 2), torch.ones(2, 2))


WRONG_SHAPES = [
    ([(1, 4, 5, 4), (1, 2, 5, 3), (1, 2, 5, 3)], "same head_dim"),
    ([(1, 4, 5, 4), (1, 2, 6, 4), (1, 2, 5, 4)], "key and value the same seq"),
    ([(1, 4, 5, 4), (4, 5, 4), (4, 5, 4)], "same number of dims"),
    ([(1, 4, 5, 4), (1, 3, 5, 4), (1, 3, 5, 4)], "the key heads must divide the query heads"),
    ([(2, 4, 5, 4), (3, 4, 5, 4), (3, 4, 5, 4)], "leading dims must be equal"),
    ([(4,), (4,), (4,)], "same number of dims"),
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("shapes", "message"), WRONG_SHAPES)
def test_tensors_that_do_not_fit_together_are_refused(shapes, message):
    with pytest.raises(ShapeError, match=message):
        F.scaled_dot_product_attention(*(torch.ones(shape) for shape in shapes))


def test_tensors_of_several_dtypes_are_refused():
    q, k, v = inputs((), 1, 1, 2, 2)
    with pytest.raises(ShapeError, match="one dtype"):
        F.scaled_dot_product_attention(q, k.float(), v)


def test_a_window_needs_causal_and_a_size():
    q, k, v = inputs((), 1, 1, 2, 2)
    with pytest.raises(ConfigError, match=r"window=2 .* needs causal=True"):
        F.scaled_dot_product_attention(q, k, v, window=2)
    with pytest.raises(ConfigError, match="window must be an integer of at least 1, not 0"):
        F.scaled_dot_product_attention(q, k, v, window=0, causal=True)


@given(batches, groups, st.sampled_from([32, 40, 128, 150]), mask_kinds, st.none() | st.integers(1, 200), seeds)
@settings(max_examples=15)
def test_long_causal_bfloat16_is_as_accurate_as_the_formula_and_so_are_its_gradients(
    batch, heads, seq, kind, window, seed
):
    q, k, v = (x.requires_grad_() for x in inputs(batch, *heads, seq, seq, seed=seed, dtype=torch.bfloat16))
    mask = mask_like(kind, (*batch, heads[0], seq, seq), seed)
    grad = normal(*q.shape[:-1], 3, seed=seed, dtype=torch.bfloat16)

    def attend(*tensors):
        y = F.scaled_dot_product_attention(*tensors, mask, causal=True, window=window)
        return y, *torch.autograd.grad(y, tensors, grad.to(y.dtype))

    exact = [array(x) for x in attend(*(x.detach().double().requires_grad_() for x in (q, k, v)))]
    allowed = mask.numpy() & formulas.may_attend(seq, seq, causal=True, window=window)
    assert_exact(torch.from_numpy(exact[0]), oracle(q, k, v, allowed))
    with use_backend("reference"):
        plain = attend(q, k, v)
    y = blocked_attention(q, k, v, torch.from_numpy(allowed), causal=True)
    blocked = y, *torch.autograd.grad(y, (q, k, v), grad)
    for run in (attend(q, k, v), blocked):
        for actual, wanted, formula in zip(run, exact, plain, strict=True):
            assert_accurate(actual, wanted, formula)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("q_seq", [1, 3])
def test_its_gradients_are_right(backend, q_seq):
    tensors = [x.requires_grad_() for x in inputs((), 4, 2, q_seq, 3)]
    with use_backend(backend):
        for mask in (None, mask_of(1, q_seq, 3)):
            assert torch.autograd.gradcheck(lambda *x, mask=mask: F.scaled_dot_product_attention(*x, mask), tensors)
        assert torch.autograd.gradcheck(lambda *x: F.scaled_dot_product_attention(*x, causal=True, window=2), tensors)
