import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import explain, use_backend
from prenorm.generation.sampling import Sampling
from prenorm.kernels.cpu import argmax as kernel
from prenorm.kernels.cpu import native
from prenorm.ops import backends

from ...oracle.inputs import integers, normal, seeds

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

dtypes = st.sampled_from(list(kernel.DTYPES))
every_dtype = pytest.mark.parametrize("dtype", list(kernel.DTYPES))
# Around the steps (8 to 32 numbers) and the chunks (32 steps), and nothing in particular.
widths = st.sampled_from([1, 2, 7, 8, 9, 31, 32, 33, 255, 256, 257, 777, 1023, 1024, 1025, 2049, 32_000])


def formula(x):
    with use_backend("reference"):
        return greedy(x)


def greedy(x):
    return Sampling(temperature=0).choose(x, torch.zeros(x.shape[:-1], dtype=torch.float64, device="cpu"))


@given(st.integers(1, 9), widths, dtypes, seeds, st.sampled_from([2, 50, 10**6]))
def test_it_finds_the_first_of_the_largest(rows, width, dtype, seed, limit):
    x = (integers(rows, width, limit=limit, seed=seed) - limit // 2).to(dtype)  # with few numbers many are equal
    assert kernel.supports(x)
    wide = x.double().numpy()
    assert kernel.argmax(x).tolist() == [row.tolist().index(row.max()) for row in wide] == formula(x).tolist()


@given(widths, dtypes, seeds, st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(0, 0.999))
def test_what_is_no_number_is_no_choice(width, dtype, seed, number, where):
    x = normal(3, width, seed=seed).to(dtype)
    x[1, int(where * width)] = number
    places = kernel.argmax(x)
    assert torch.equal(places, formula(x))
    assert (places[1] == -1) == (number != -math.inf or width == 1)
    assert (places[::2] >= 0).all()


@every_dtype
def test_nothing_but_minus_infinity_is_no_choice(dtype):
    x = torch.full((2, 100), -math.inf, dtype=dtype)
    assert kernel.argmax(x).tolist() == [-1, -1]
    x[1, 70] = torch.finfo(dtype).min
    assert kernel.argmax(x).tolist() == [-1, 70]


@every_dtype
def test_any_dims_and_layouts_and_threads(dtype):
    x = normal(3, 4, 5000).to(dtype)
    expected = formula(x)
    assert expected.shape == (3, 4)
    assert torch.equal(kernel.argmax(x.mT.contiguous().mT), expected)
    assert kernel.argmax(x[1, 2]).item() == expected[1, 2]
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(kernel.argmax(x), expected)
    finally:
        torch.set_num_threads(before)


@every_dtype
def test_another_default_device_changes_nothing(dtype):
    x = normal(2, 50).to(dtype)
    with torch.device("meta"):
        assert torch.equal(kernel.argmax(x), formula(x))


def test_the_greedy_choice_takes_it():
    x = normal(2, 50, dtype=torch.float32)
    assert backends.choose("argmax", x) is kernel.argmax
    for refused in (x.double(), x[:0], torch.complex(x, x).conj().imag, x.to("meta")):
        assert backends.choose("argmax", refused) is None
        if refused.device.type == "cpu":
            assert torch.equal(greedy(refused), formula(refused))
    assert any(choice.op == "argmax" for choice in explain())
