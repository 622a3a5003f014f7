import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import ModelConfig, TransformerLM, use_backend
from prenorm.kernels.cpu import decode_attention as kernel
from prenorm.kernels.cpu import native
from prenorm.ops import backends
from prenorm.ops.attention import _formula

from ...oracle.inputs import normal, randomise, seeds
from ...oracle.tolerance import array, assert_accurate, assert_rounded_once

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

narrow = st.sampled_from([torch.float32, torch.bfloat16])


def inputs(batch, heads, groups, keys, head_dim, *, dtype=torch.float32, seed=0, loud=1.0, spare=3):
    """A query, and keys and values as a cache has them: with slots that are not used yet, full of numbers."""
    query = normal(batch, heads, 1, head_dim, seed=seed, dtype=dtype) * loud
    key, value = (normal(batch, groups, keys + spare, head_dim, seed=seed + i, dtype=dtype) for i in (1, 2))
    return query, key[:, :, :keys], value[:, :, :keys]


def oracle(query, key, value, mask=None):
    return array(_formula(query.double(), key.double(), value.double(), mask, 0.0))


@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (6, 2), (8, 1), (9, 1), (20, 2)]),
    st.sampled_from([1, 2, 3, 15, 16, 17, 40, 100]),
    st.sampled_from([32, 64, 96]),
    narrow,
    st.sampled_from(["none", "one", "rows"]),
    seeds,
)
def test_values_are_right(batch, heads, keys, head_dim, dtype, masked, seed):
    given = inputs(batch, *heads, keys, head_dim, dtype=dtype, seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    shape = {"none": None, "one": (1, keys), "rows": (batch, 1, 1, keys)}[masked]
    mask = None if shape is None else torch.rand(shape, generator=drawn) < 0.6
    assert kernel.supports(*given, mask)
    y, expected = kernel.decode_attention(*given, mask, causal=True), oracle(*given, mask)
    assert y.dtype == dtype
    size = max(1.0, abs(expected).max())
    assert abs(array(y) - expected).max() <= size * (2e-6 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("loud", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("keys", [7, 192, 2000])
def test_it_is_float32_and_rounded_once(keys, loud):
    given = inputs(2, 8, 2, keys, 64, loud=loud)
    assert_accurate(kernel.decode_attention(*given, None, causal=True), oracle(*given), _formula(*given, None, 0.0))
    given = inputs(2, 8, 2, keys, 64, loud=loud, dtype=torch.bfloat16)
    assert_rounded_once(kernel.decode_attention(*given, None, causal=True), oracle(*given))


def test_exponentials_are_right_down_to_nothing():
    differences = torch.linspace(0, 120, 1000)
    query, key = torch.zeros(1, 1, 1, 32), torch.zeros(1, 1, 1000, 32)
    query[..., 0], key[0, 0, :, 0] = 32**0.5, -differences
    value = torch.eye(1000, dtype=torch.float32)
    for start in range(0, 1000, 32):  # each weight by itself
        part = torch.zeros(1, 1, 1000, 32)
        columns = value[:, start : start + 32]
        part[0, 0, :, : columns.shape[1]] = columns
        weights = kernel.decode_attention(query, key, part, None, causal=True)[0, 0, 0, : columns.shape[1]].double()
        expected = (-differences.double()).softmax(0)[start : start + 32]
        torch.testing.assert_close(weights, expected, rtol=2e-5, atol=2e-38)  # the scores were rounded, too


def test_who_may_attend_to_nothing_gets_zeros_and_no_one_hears_what_is_hidden():
    query, key, value = inputs(2, 4, 2, 20, 32)
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    mask[1, ..., :5] = True
    key[:, :, 5:], value[:, :, 5:] = 1e30, 1e30
    y = kernel.decode_attention(query, key, value, mask, causal=True)
    assert (y[0] == 0).all()
    torch.testing.assert_close(y[1:], _formula(query[1:], key[1:, :, :5], value[1:, :, :5], None, 0.0))


def test_what_is_no_number_is_seen():
    query, key, value = inputs(1, 2, 2, 20, 32)
    key[0, 0, 3, 1] = torch.nan
    y = kernel.decode_attention(query, key, value, None, causal=True)
    assert y[0, 0].isnan().all()
    assert not y[0, 1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_depends_on_no_other_row_and_on_no_thread(dtype):
    query, key, value = inputs(3, 8, 2, 700, 64, dtype=dtype)
    together = kernel.decode_attention(query, key, value, None, causal=True)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for row in range(3):
                alone = kernel.decode_attention(query[row, None], key[row, None], value[row, None], None, causal=True)
                assert torch.equal(alone[0], together[row])
    finally:
        torch.set_num_threads(threads)


def test_it_takes_what_it_can_and_nothing_else():
    query, key, value = inputs(2, 4, 2, 20, 32)
    assert kernel.supports(query, key, value, None)
    assert kernel.supports(query, key, value, torch.ones(2, 1, 1, 20, dtype=torch.bool))
    refused = [
        (query.expand(-1, -1, 2, -1), key, value, None),
        (query[0], key[0], value[0], None),
        (query[..., :30], key[..., :30], value[..., :30], None),
        (query.double(), key.double(), value.double(), None),
        (query, key.mT.contiguous().mT, value, None),
        (query, key, value.mT.contiguous().mT, None),
        (query, key, value[..., :16], None),
        (query, key[:, :, :0], value[:, :, :0], None),
        (query[:0], key[:0], value[:0], None),
        (query, key, value, torch.ones(2, 4, 1, 20, dtype=torch.bool)),  # a mask for each head
        (query.as_subclass(Looked), key, value, None),
        (torch.complex(query, query).conj().imag, key, value, None),
        (query.requires_grad_(), key, value, None),
    ]
    for one in refused:
        assert not kernel.supports(*one)
    assert not kernel.supports(query.detach(), key, value, None, dropout=0.1)


class Looked(torch.Tensor):
    """A tensor of a class of its own."""


def test_the_op_takes_it():
    query, key, value = inputs(2, 4, 2, 20, 32)
    ours = backends.choose("scaled_dot_product_attention", query, key, value, None, causal=True, dropout=0.0)
    assert ours is kernel.decode_attention
    y = F.scaled_dot_product_attention(query, key, value, causal=True, window=5)
    torch.testing.assert_close(y, _formula(query, key[:, :, -5:], value[:, :, -5:], None, 0.0))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("prompts", [[[3, 1, 2]], [[5], [1, 2, 3, 4, 5, 6, 7], [9, 9]]])
def test_a_model_writes_what_its_formulas_write(window, prompts):
    config = ModelConfig(50, 128, 2, 4, num_kv_heads=2, window=window, max_seq_len=64, qkv_bias=True, qk_norm=True)
    model = randomise(TransformerLM(config)).eval()
    given = model.generate(prompts, max_new_tokens=24, temperature=0)
    with use_backend("reference"):
        assert model.generate(prompts, max_new_tokens=24, temperature=0) == given
