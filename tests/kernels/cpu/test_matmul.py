import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import use_backend
from prenorm.kernels.cpu import matmul as kernel
from prenorm.kernels.cpu import native
from prenorm.ops import backends

from ...oracle.inputs import integers, normal, seeds
from ...oracle.tolerance import array, assert_accurate, assert_rounding_alone

pytestmark = pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")

dtypes = st.sampled_from(list(kernel.DTYPES))
every_dtype = pytest.mark.parametrize("dtype", list(kernel.DTYPES))
# Around a tile's rows (6 or 14) and columns (8 to 32), the columns that a panel meets at a time (768 of the widest).
rows = st.sampled_from([1, 2, 5, 6, 7, 13, 14, 15, 28, 29, 60])
columns = st.sampled_from([1, 3, 7, 8, 16, 31, 32, 33, 65, 100, 767, 769])
# Around the vectors and the numbers that are packed at a time (256 of float32, 512 of bfloat16).
depths = st.sampled_from([1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 255, 256, 257, 511, 513, 1100])
orders = st.sampled_from(["rows", "columns", "every second"])


def laid(x, order):
    """The same numbers, side by side along rows, along columns, or along neither."""
    if order == "every second":
        return torch.stack((x, x + 1), dim=-1)[..., 0]
    return x if order == "rows" else x.t().contiguous().t()


def inputs(m, k, n, *, dtype=torch.float32, seed=0, order=("rows", "rows")):
    """a and b."""
    a, b = normal(m, k, seed=seed, dtype=dtype), normal(k, n, seed=seed + 1, dtype=dtype)
    return laid(a, order[0]), laid(b, order[1])


@given(rows, columns, depths, st.tuples(orders, orders), dtypes, seeds)
def test_products_and_sums_with_them_are_right(m, n, k, order, dtype, seed):
    a, b = inputs(m, k, n, dtype=dtype, seed=seed, order=order)
    expected = array(a) @ array(b)
    c = kernel.matmul(a, b)
    assert c.dtype == torch.float32
    assert_rounding_alone(c, expected, torch.float32)
    total = normal(m, 2 * n, seed=seed + 2, dtype=torch.float32)[:, :n]  # with other numbers between its rows
    whole = total._base.clone()
    kernel.addmm_(total, a, b)
    assert_rounding_alone(total, array(whole[:, :n]) + expected, torch.float32)
    assert torch.equal(total._base[:, n:], whole[:, n:])


@every_dtype
@pytest.mark.parametrize(("m", "k", "n"), [(300, 2048, 256), (768, 131, 100), (64, 10_000, 64)])
def test_they_are_as_accurate_as_pytorchs(m, k, n, dtype):
    a, b = inputs(m, k, n, dtype=dtype, order=("columns", "rows"))
    assert_accurate(kernel.matmul(a, b), array(a) @ array(b), a.float() @ b.float())


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(count, dtype):
    a, b = inputs(100, 700, 900, dtype=dtype, order=("columns", "rows"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = kernel.matmul(a, b)
        torch.set_num_threads(count)
        assert torch.equal(kernel.matmul(a, b), alone)
    finally:
        torch.set_num_threads(before)


@every_dtype
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_what_is_no_number_stays_in_its_row_and_column(order, dtype):
    a, b = inputs(20, 70, 40, dtype=dtype, order=(order, order))
    a[3, 69], b[5, 39] = torch.nan, torch.inf
    c, expected = kernel.matmul(a, b), a.float() @ b.float()
    assert torch.equal(c.isnan(), expected.isnan())
    assert torch.equal(c.isinf(), expected.isinf())


class Subclass(torch.Tensor):
    """A tensor of a class of its own."""


def test_it_takes_what_it_can_and_nothing_else(monkeypatch):
    monkeypatch.setattr(kernel, "FASTEST_HERE", True)
    a, b = inputs(5, kernel.MIN_ROWS, 6)
    assert kernel.supports(a, b)
    assert kernel.supports(a.bfloat16(), b.bfloat16())
    assert kernel.supports(laid(a, "columns"), laid(b, "every second"))
    refused = [
        (a[:, 1:], b[1:]),  # few rows
        (a, b[1:]),
        (a[:0], b),
        (a, b[:, :0]),
        (a.double(), b.double()),
        (a, b.bfloat16()),
        (a[None], b),
        (a, b.to("meta")),
        (a.as_subclass(Subclass), b),
        (a, torch._neg_view(b)),
    ]
    for one in refused:
        assert not kernel.supports(*one)
    monkeypatch.setattr(kernel, "FASTEST_HERE", False)
    assert not kernel.supports(a, b)
    assert kernel.unavailable_reason()


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_the_loss_and_linear_have_the_same_gradients_with_it(order, narrow, monkeypatch):
    monkeypatch.setattr(kernel, "FASTEST_HERE", True)
    x, weight = (laid(normal(*shape, dtype=torch.float32), order).requires_grad_() for shape in ((200, 64), (500, 64)))
    targets = integers(200, limit=500)
    assert backends.choose("addmm", x.detach().t(), x.detach()) is kernel.addmm_

    def gradients():
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            losses = F.linear_cross_entropy(x, weight, targets), F.cross_entropy(F.linear(x, weight), targets)
        return [one for loss in losses for one in torch.autograd.grad(loss, (x, weight))]

    ours = gradients()
    with use_backend("reference"):
        plain = gradients()
    wide = [one.detach().double().requires_grad_() for one in (x, weight)]
    oracle = torch.autograd.grad(F.cross_entropy(F.linear(*wide), targets), wide) * 2
    for actual, formula, expected in zip(ours, plain, oracle, strict=True):
        assert_accurate(actual, array(expected), formula)
