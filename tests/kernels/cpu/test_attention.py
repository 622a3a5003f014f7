import math
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import prenorm.functional as F
from prenorm import use_backend
from prenorm.kernels.cpu import attention as kernel
from prenorm.kernels.cpu import native
from prenorm.ops import backends
from prenorm.ops.attention import _formula

from ...oracle import formulas
from ...oracle.inputs import lay_out, mask_of, normal, seeds
from ...oracle.tolerance import FEW, array, assert_accurate, assert_close

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

narrow = st.sampled_from([torch.float32, torch.bfloat16])
both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
head_counts = st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (3, 1)])
# Around the tiles (8 queries, 32 keys), the blocks (64 and 256 queries, 128 and 256 keys), with AVX2 those of 6 and 16,
# 60 and 192, 144 and 256, and nothing in particular.
lengths = st.sampled_from(
    [1, 2, 3, 5, 6, 7, 8, 9, 16, 31, 32, 33, 61, 63, 65, 100, 128, 129, 144, 145, 193, 255, 257, 300]
)
head_dims = st.sampled_from([16, 32, 48, 64, 80, 96, 128])
layouts = st.sampled_from(["projected", "contiguous", "transposed", "every second", "offset"])


def inputs(batch, heads, groups, queries, keys, head_dim, *, dtype=torch.float32, seed=0, layout="projected", loud=1.0):
    """Queries, keys, values, and the gradient of the result, by default as projections cut into heads."""

    def one(i, heads, seq):
        x = normal(batch, seq, heads, head_dim, seed=seed + i, dtype=dtype).transpose(1, 2)
        return x if layout == "projected" else lay_out(x, layout)

    return one(0, heads, queries) * loud, one(1, groups, keys), one(2, groups, keys), one(3, heads, queries)


def run(query, key, value, grad, mask=None, attend=kernel.attention, **options):
    """The result and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    y = attend(*leaves, mask, **options)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


def formula(query, key, value, mask, *, causal=False, window=None):
    allowed = torch.from_numpy(formulas.may_attend(query.shape[2], key.shape[2], causal=causal, window=window))
    return _formula(query, key, value, allowed if mask is None else allowed & mask, 0.0)


def assert_as_accurate_as_the_formula(given, mask=None, **options):
    ours = run(*given, mask, **options)
    plain = run(*given, mask, attend=formula, **options)
    exact = run(*(x.double() for x in given), mask, attend=formula, **options)
    for actual, expected, usual in zip(ours, exact, plain, strict=True):
        assert actual.dtype == given[0].dtype
        assert_accurate(actual, array(expected), usual)


@given(
    st.integers(1, 2),
    head_counts,
    lengths,
    lengths,
    head_dims,
    narrow,
    st.booleans(),
    st.sampled_from([None, 1, 5, 40, 200]),
    st.sampled_from([None, "q kv", "batch 1 q kv", "batch 1 1 kv", "1 heads q kv", "batch heads q kv"]),
    layouts,
    seeds,
)
@settings(max_examples=150)
def test_values_and_gradients_are_as_accurate_as_the_formulas(
    batch, heads, queries, keys, head_dim, dtype, causal, window, masked, layout, seed
):
    given = inputs(batch, *heads, queries, keys, head_dim, dtype=dtype, seed=seed, layout=layout)
    shapes = {
        "q kv": (queries, keys),
        "batch 1 q kv": (batch, 1, queries, keys),
        "batch 1 1 kv": (batch, 1, 1, keys),
        "1 heads q kv": (1, heads[0], queries, keys),
        "batch heads q kv": (batch, heads[0], queries, keys),
    }
    assume(min(batch * heads[0] * queries, batch * heads[1] * keys) * head_dim >= FEW)
    mask = None if masked is None else mask_of(*shapes[masked], seed=seed)
    assert kernel.fits(*given[:3], mask)
    assert_as_accurate_as_the_formula(given, mask, causal=causal, window=window if causal else None)


@pytest.mark.parametrize("loud", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("keys", [40, 600, 2000])
@both
def test_large_and_small_scores_are_no_less_accurate(loud, keys, dtype):
    given = inputs(1, 4, 2, 40, keys, 64, loud=loud, dtype=dtype)
    assert_as_accurate_as_the_formula(given, causal=True)


@both
def test_a_later_token_never_reaches_an_earlier_output(dtype):
    query, key, value, _ = inputs(1, 2, 1, 300, 300, 32, dtype=dtype)
    before = kernel.attention(query, key, value, None, causal=True)
    for place in (299, 256, 255, 130, 128, 127, 33, 32, 31, 8, 1):
        changed = [x.clone() for x in (query, key, value)]
        for x in changed:
            x[:, :, place:] = 1e4
        after = kernel.attention(*changed, None, causal=True)
        assert torch.equal(after[:, :, :place], before[:, :, :place])
        assert not torch.equal(after[:, :, place:], before[:, :, place:])


@both
def test_nothing_outside_the_window_is_heard(dtype):
    query, key, value, _ = inputs(1, 2, 1, 300, 300, 32, dtype=dtype)
    before = kernel.attention(query, key, value, None, causal=True, window=70)
    key[:, :, :200], value[:, :, :200] = 1e4, -1e4
    after = kernel.attention(query, key, value, None, causal=True, window=70)
    assert torch.equal(after[:, :, 269:], before[:, :, 269:])
    assert not torch.equal(after[:, :, 268], before[:, :, 268])


@both
def test_a_query_gives_the_same_bits_in_any_company(dtype):
    given = inputs(3, 4, 2, 300, 300, 80, dtype=dtype)
    query, key, value, _ = given
    whole = kernel.attention(query, key, value, None, causal=True)
    for row in range(3):
        alone = kernel.attention(*(x[row : row + 1] for x in (query, key, value)), None, causal=True)
        assert torch.equal(alone[0], whole[row])
    for start, stop in ((0, 1), (0, 100), (57, 130), (255, 257), (299, 300)):  # as pieces with a cache
        piece = kernel.attention(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], None, causal=True)
        assert torch.equal(piece, whole[:, :, start:stop])
    everyone = torch.ones(300, 300, dtype=torch.bool).tril()
    assert torch.equal(kernel.attention(query, key, value, everyone), whole)  # who sees whom, said otherwise


@pytest.mark.parametrize("heads", [(1, 1), (4, 1), (3, 3), (8, 2)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 90}])
@both
def test_no_bit_depends_on_the_number_of_threads(heads, options, dtype):
    given = inputs(1, *heads, 300, 300, 32, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(*given, **options))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@both
def test_each_gradient_is_the_same_whichever_others_are_wanted(dtype):
    query, key, value, grad = inputs(1, 4, 2, 200, 200, 32, dtype=dtype)
    _, *expected = run(query, key, value, grad, causal=True)
    for wanted in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate((query, key, value))]
        y = kernel.attention(*leaves, None, causal=True)
        for i, actual in zip(wanted, torch.autograd.grad(y, [leaves[i] for i in wanted], grad), strict=True):
            assert torch.equal(actual, expected[i])


@both
def test_who_sees_nothing_gives_zeros_and_takes_no_gradient(dtype):
    given = inputs(2, 4, 2, 50, 30, 32, dtype=dtype)  # the first 20 queries stand before the first key
    mask = mask_of(2, 1, 50, 30)
    mask[:, :, 25], mask[..., 7] = False, False
    y, grad_query, grad_key, grad_value = run(*given, mask, causal=True)
    empty = ~(mask & torch.from_numpy(formulas.may_attend(50, 30, causal=True))).any(-1)[:, 0]
    assert empty.sum() >= 40
    assert y.transpose(1, 2)[~empty].all()
    for x in (y, grad_query):
        assert not x.transpose(1, 2)[empty].any()
    for x in (grad_key, grad_value):
        assert not x[:, :, 7].any()
        assert torch.isfinite(x).all()


@both
def test_a_query_with_one_key_gives_its_value_and_takes_no_gradient(dtype):
    given = inputs(1, 2, 2, 40, 40, 64, dtype=dtype)
    y, grad_query, grad_key, grad_value = run(*given, causal=True, window=1)
    assert torch.equal(y, given[2])
    assert not grad_query.any()
    assert not grad_key.any()
    assert torch.equal(grad_value, given[3])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
@both
def test_what_is_no_number_is_seen_by_those_who_see_it_alone(number, where, dtype):
    given = list(inputs(1, 2, 1, 100, 100, 32, dtype=dtype))
    given[where][0, 0, 50, 3] = number
    y = kernel.attention(*given[:3], None, causal=True)
    expected = formula(*given[:3], None, causal=True)
    reached = [slice(50, 51), slice(50, 100), slice(50, 100)][where]
    assert torch.equal(y[:, :, reached].isnan(), expected[:, :, reached].isnan())
    assert torch.equal(y[:, :, reached].isinf(), expected[:, :, reached].isinf())
    assert not y[0, 0, :48].isnan().any()  # a tile of queries multiplies the values that any of them sees
    assert not y[0, 1, :48].isnan().any()


@both
def test_scores_beyond_float32_are_as_in_the_formula(dtype):
    query, key, value, _ = inputs(1, 1, 1, 40, 40, 32, dtype=dtype)
    query[..., 0, :], query[..., 1, :] = 1e30, 1e18
    key[..., 0], key[..., 3, :] = 1e18, -1e18
    y, expected = kernel.attention(query, key, value, None), formula(query, key, value, None)
    assert torch.equal(y.isnan(), expected.isnan())


def test_exponentials_are_right_down_to_nothing():
    differences = torch.linspace(0, 120, 1000)
    query, key = torch.zeros(1, 1, 2, 16), torch.zeros(1, 1, 1000, 16)
    query[..., 0], key[0, 0, :, 0] = 4.0, -differences
    expected = (-differences.double()).softmax(0)
    value = torch.zeros(1, 1, 1000, 16)
    for start in range(0, 1000, 16):  # each weight by itself
        value.zero_()
        some = min(16, 1000 - start)
        value[0, 0, start : start + some, :some] = torch.eye(some)
        weights = kernel.attention(query, key, value, None)[0, 0, 1, :some].double()
        torch.testing.assert_close(weights, expected[start : start + some], rtol=2e-5, atol=2e-38)


@given(st.sampled_from([(), (1,), (3,), (2, 3)]), head_counts, narrow, st.booleans(), seeds)
def test_any_dims_may_lead(leading, heads, dtype, masked, seed):
    shapes = (*leading, heads[0], 20, 32), (*leading, heads[1], 30, 32), (*leading, heads[1], 30, 32)
    query, key, value = (normal(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes))
    mask = mask_of(*leading, 1, 20, 30, seed=seed) if masked else None
    y = kernel.attention(query, key, value, mask, causal=True)
    assert y.shape == query.shape
    with use_backend("reference"):
        plain = F.scaled_dot_product_attention(query, key, value, mask, causal=True)
        exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), mask, causal=True)
    assert_close(y, array(exact), plain)


@both
def test_gradients_of_gradients_are_right(dtype):
    given = [x.requires_grad_() for x in inputs(1, 4, 2, 12, 17, 16, dtype=dtype)]
    wide = [x.detach().double().requires_grad_() for x in given]
    mask = mask_of(1, 4, 12, 17)

    def second(attend, query, key, value, grad):
        first = torch.autograd.grad(
            attend(query, key, value, mask, causal=True, window=9), (query, key, value), grad, create_graph=True
        )
        loss: Any = sum(x.float().pow(3).sum() if dtype == torch.float32 else x.sum() for x in first)
        return *first, *torch.autograd.grad(loss, (query, key, value, grad))

    usual = second(formula, *given)
    for actual, expected, plain in zip(second(kernel.attention, *given), second(formula, *wide), usual, strict=True):
        torch.testing.assert_close(actual, expected.to(dtype), rtol=1e-3, atol=1e-4) if dtype == torch.float32 else (
            assert_accurate(actual, array(expected), plain)
        )


def test_a_batch_of_gradients_is_right():
    query, key, value, _ = inputs(1, 2, 1, 3, 4, 16)
    query.requires_grad_()
    attend = lambda q: kernel.attention(q, key, value, None, causal=True)  # noqa: E731
    whole = torch.autograd.functional.jacobian(attend, query, vectorize=True)
    torch.testing.assert_close(whole, torch.autograd.functional.jacobian(attend, query), rtol=1e-4, atol=1e-6)


def test_hooks_may_move_what_is_kept_for_the_backward_pass():
    given = inputs(2, 2, 1, 40, 40, 32)
    mask = mask_of(2, 1, 40, 40)
    _, *expected = run(*given, mask)
    moved = lambda x: x.mT.contiguous().mT if x.ndim == 4 else x.clone()  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(moved, lambda x: x):
        leaves = [x.detach().requires_grad_() for x in given[:3]]
        y = kernel.attention(*leaves, mask)
    for actual, wanted in zip(torch.autograd.grad(y, leaves, given[3]), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_an_expanded_or_negated_gradient_is_read_rightly():
    query, key, value, grad = inputs(1, 2, 1, 40, 40, 32)
    for one, same in ((torch.ones(()).expand_as(grad), torch.ones_like(grad)), (torch._neg_view(grad), -grad)):
        for actual, wanted in zip(run(query, key, value, one), run(query, key, value, same), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def test_heads_are_merged_without_a_copy():
    query, key, value, grad = inputs(2, 4, 2, 20, 20, 32)
    for x in run(query, key, value, grad):
        assert x.transpose(1, 2).is_contiguous()


def test_it_takes_what_it_can_and_nothing_else():
    query, key, value, _ = inputs(2, 4, 2, 64, 64, 32)
    assert kernel.fits(query, key, value, None)
    assert kernel.supports(query, key, value, None) == (not kernel.unavailable_reason())
    assert not kernel.supports(query[:, :, :63], key, value, None)
    few = (x[:, :, :3].bfloat16() for x in (query, key, value))
    assert kernel.supports(*few, None) == (not kernel.unavailable_reason())
    assert not kernel.supports(query, key, value, None, dropout=0.1)
    refused = [
        (query.double(), key.double(), value.double(), None),
        (query[..., :24], key[..., :24], value[..., :24], None),
        (query, key, value[..., :16], None),
        (query[:, :, :0], key, value, None),
        (query, key[:, :, :0], value[:, :, :0], None),
        (query[:0], key[:0], value[:0], None),
        (query.as_subclass(Looked), key, value, None),
        (torch.complex(query, query).conj().imag, key, value, None),
        (*torch.zeros(3, 1, 1, 4, 272), None),
    ]
    for one in refused:
        assert not kernel.fits(*one)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernel.supports(query, key, value, None)


class Attend(torch.nn.Module):
    """The op, as a module and as a function that can be compiled."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, query, key, value, mask=None):
        return F.scaled_dot_product_attention(query, key, value, mask, **self.options)


@pytest.mark.sampled(3)
@both
@pytest.mark.parametrize(
    ("masked", "options"), [(False, {"causal": True}), (False, {"causal": True, "window": 5}), (True, {})]
)
def test_compiled_code_holds_it_as_one_op_for_every_size(masked, options, dtype, monkeypatch, shapes_unchecked):
    monkeypatch.setattr(kernel, "REASON", "")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Attend(**options), fullgraph=True, backend=counter)
    for batch, seq in ((2, 70), (3, 65), (2, 64), (4, 4), (5, 3)):
        query, key, value, grad = inputs(batch, 4, 2, seq, seq, 32, dtype=dtype)
        mask = mask_of(batch, 1, seq, seq) if masked else None
        ours = run(query, key, value, grad, mask, attend=compiled)
        for one, other in zip(ours, run(query, key, value, grad, mask, **options), strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
    assert counter.frame_count == 2
    assert "prenorm.attention" in counter.graphs[-1].code


@pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")
def test_generated_code_gives_the_same_numbers(monkeypatch, shapes_unchecked):
    monkeypatch.setattr(kernel, "REASON", "")
    given = inputs(2, 4, 2, 70, 70, 32)
    compiled = torch.compile(Attend(causal=True), fullgraph=True)
    for one, other in zip(run(*given, attend=compiled), run(*given, causal=True), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch says it of its own attention
@pytest.mark.parametrize("transform", [lambda f: f, torch.func.vmap])
def test_compiled_code_under_torch_func_holds_the_formula(transform, monkeypatch, shapes_unchecked):
    monkeypatch.setattr(kernel, "REASON", "")
    query, key, value, _ = inputs(3, 4, 4, 9, 9, 32)

    def loss(query):
        return F.scaled_dot_product_attention(query, key[0], value[0], causal=True).square().sum()

    slopes = transform(torch.func.grad(loss))
    given = query if transform is torch.func.vmap else query[0]
    compiled = torch.compile(slopes, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given), slopes(given))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14's own check looks
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_the_op_is_what_its_description_for_compilers_says(masked, window):
    query, key, value, _ = inputs(2, 4, 2, 10, 12, 32)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    mask = mask_of(2, 1, 10, 12) if masked else None
    torch.library.opcheck(torch.ops.prenorm.attention.default, (*leaves, mask, True, window))


def test_neither_exported_code_nor_a_single_query_holds_it(monkeypatch, shapes_unchecked):
    monkeypatch.setattr(kernel, "REASON", "")
    query, key, value, _ = inputs(2, 4, 2, 64, 64, 32)
    assert "prenorm" not in torch.export.export(Attend(), (query, key, value)).graph_module.code
    counter = CompileCounterWithBackend("eager")
    torch.compile(Attend(), fullgraph=True, backend=counter)(query[:, :, :1], key, value)
    assert "prenorm" not in counter.graphs[-1].code


class Looked(torch.Tensor):
    """A tensor of a class of its own."""


@pytest.mark.skipif(bool(kernel.unavailable_reason()), reason="another kernel is chosen on this processor")
def test_the_op_takes_it():
    query, key, value, _ = inputs(2, 4, 2, 60, 80, 32)
    ours = backends.choose("scaled_dot_product_attention", query, key, value, None, causal=True, dropout=0.0)
    assert ours is kernel.attention
    y = F.scaled_dot_product_attention(query, key, value, causal=True, window=5)
    torch.testing.assert_close(y, formula(query, key, value, None, causal=True, window=5))


def test_processors_that_were_not_measured_are_left_to_pytorch():
    assert not kernel.reason("AuthenticAMD", 25)
    assert not kernel.reason("AuthenticAMD", 26)
    for vendor, family in (("AuthenticAMD", 23), ("GenuineIntel", 6), ("", 0)):
        assert "Zen 3" in kernel.reason(vendor, family)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_activation_checkpointing_its_gradients_are_the_same(dtype):
    query, key, value, grad = inputs(1, 2, 2, 70, 70, 32, dtype=dtype)
    plain = run(query, key, value, grad, causal=True)
    twice = torch.utils.checkpoint.checkpoint

    def attend(*given, **options):  # what was saved for the second is computed anew, and unpacked once only
        return twice(lambda *x: kernel.attention(*x, **options) + 0, *given, use_reentrant=False)

    for ours, wanted in zip(run(query, key, value, grad, attend=attend, causal=True), plain, strict=True):
        assert torch.equal(ours, wanted)
