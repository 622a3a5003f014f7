import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import use_backend

from ..oracle.inputs import layouts, leadings, normal, seeds
from ..oracle.tolerance import array, assert_exact

backends = pytest.mark.parametrize("backend", ["auto", "reference"])
of_torch_itself = pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")
# The kernel takes p to the nearest 1/65536, and these are such numbers.
exact_shares = st.sampled_from([0.125, 0.25, 0.5, 0.875])


def drop(x, p, seed=0):
    torch.manual_seed(seed)
    return F.dropout(x, p)


def within_chance(count, p, n):
    """Five standard deviations of n draws."""
    return abs(count - p * n) < 5 * (p * (1 - p) * n) ** 0.5


@backends
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_share_p_is_dropped_and_what_is_kept_makes_up_for_it(p, dtype, backend):
    x = torch.ones(100_001, dtype=dtype)
    with use_backend(backend):
        y = drop(x, p)
    assert y.dtype == dtype
    kept = y[y != 0]
    assert within_chance(len(x) - len(kept), p, len(x))
    assert kept.unique().numel() == 1  # all of them scaled alike ...
    # ... by 1 / (1 - p), p to a half of 1/65536, rounded to the dtype
    assert abs(kept[0].item() * (1 - p) - 1) <= 2**-17 / (1 - p) + torch.finfo(dtype).eps


@backends
@given(leadings, layouts, exact_shares, seeds)
def test_numbers_are_dropped_or_scaled_wherever_they_lie_in_memory(backend, leading, layout, p, seed):
    x = normal(*leading, 5, 3, seed=seed, layout=layout)
    before = x.clone()
    with use_backend(backend):
        y = drop(x, p, seed)
    assert y.shape == x.shape
    assert_exact(y[y != 0], array(x[y != 0] / (1 - p)))
    assert torch.equal(x, before)


@backends
def test_every_place_is_dropped_as_often_as_every_other(backend):
    # 16-bit numbers come four in a draw, and neighbours must not share a fate.
    p, runs = 0.25, 4000
    with use_backend(backend):
        kept = drop(torch.ones(runs, 7), p) != 0
    assert all(within_chance(count, 1 - p, runs) for count in kept.sum(0).tolist())
    both = (kept[:, :-1] & kept[:, 1:]).sum(0).tolist()
    assert all(within_chance(count, (1 - p) ** 2, runs) for count in both)


@backends
def test_the_same_seed_drops_the_same_and_the_next_draw_is_another(backend):
    x = torch.ones(64)
    with use_backend(backend):
        first, again = drop(x, 0.5, seed=1), drop(x, 0.5, seed=1)
        after, other = F.dropout(x, 0.5), drop(x, 0.5, seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, after)
    assert not torch.equal(first, other)


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_are_dropped_and_scaled_with_their_numbers(dtype, backend):
    x = torch.ones(9, 7, dtype=dtype, requires_grad=True)
    weigh = normal(9, 7, seed=1, dtype=dtype)
    with use_backend(backend):
        y = drop(x, 0.5)  # scaled by 2, which rounds nothing
    (grad,) = torch.autograd.grad(y, x, weigh)
    assert set(y.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(grad, weigh * y.detach())


@backends
def test_first_and_second_derivatives_are_right(backend):
    x = normal(3, 5).requires_grad_()
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda x: drop(x, 0.5), x)
        assert torch.autograd.gradgradcheck(lambda x: drop(x, 0.5).square(), x)


@backends
def test_nothing_is_drawn_and_nothing_dropped_where_p_is_zero(backend):
    x = normal(5)
    with use_backend(backend):
        before = torch.get_rng_state()
        assert F.dropout(x, 0.0) is x
        assert torch.equal(torch.get_rng_state(), before)


@backends
@pytest.mark.parametrize("p", [1e-9, 1e-5, 0.99999, 0.9999999])
def test_probabilities_next_to_zero_and_one_give_finite_numbers(p, backend):
    with use_backend(backend):
        y = drop(torch.ones(1000), p)
    assert torch.isfinite(y).all()
    dropped = (y == 0).sum().item()
    assert dropped < 10 if p < 0.5 else dropped > 990


@backends
def test_infinities_stay_beside_zeros(backend):
    with use_backend(backend):
        y = drop(torch.full((100,), float("inf")), 0.5)
    assert 0 < torch.isinf(y).sum() < 100
    assert backend == "reference" or set(y.tolist()) == {0.0, float("inf")}


@backends
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)])
def test_single_numbers_and_no_numbers_are_fine(shape, backend):
    x = torch.ones(shape, requires_grad=True)
    with use_backend(backend):
        y = drop(x, 0.5)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_the_formula_draws_pytorchs_own_numbers():
    x = normal(4, 9)
    with use_backend("reference"):
        ours = drop(x, 0.3, seed=3)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.3))


def test_a_default_device_is_not_where_tensors_of_another_are_dropped():
    x = torch.ones(1000)
    with torch.device("meta"):
        y = drop(x, 0.5)
    assert within_chance((y == 0).sum().item(), 0.5, 1000)


def test_every_row_of_a_vmap_is_dropped_for_itself():
    x = torch.ones(3, 1000)
    y = torch.func.vmap(lambda row: F.dropout(row, 0.5), randomness="different")(x)
    assert all(within_chance((row == 0).sum().item(), 0.5, 1000) for row in y)
    assert not torch.equal(y[0], y[1])
    y = torch.func.vmap(lambda row: F.dropout(row, 0.5), randomness="same")(x)
    assert torch.equal(y[0], y[1])


@of_torch_itself
def test_functional_gradients_and_forward_mode_see_the_formula():
    x = torch.ones(100)
    torch.manual_seed(0)
    gradient = torch.func.grad(lambda x: F.dropout(x, 0.5).sum())(x)
    assert set(gradient.tolist()) == {0.0, 2.0}
    torch.manual_seed(0)
    y, tangent = torch.func.jvp(lambda x: F.dropout(x, 0.5), (x,), (3 * x,))[:2]
    assert torch.equal(tangent, 3 * y)
    assert set(y.tolist()) == {0.0, 2.0}


@of_torch_itself
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_whole_it_drops_and_scales_forward_and_backward():
    compiled = torch.compile(lambda x: F.dropout(x, 0.25), fullgraph=True, backend="aot_eager")
    x = torch.ones(4000, requires_grad=True)
    y = compiled(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y)
    assert within_chance((y == 0).sum().item(), 0.25, 4000)
    assert set(y.tolist()) == {0.0, torch.tensor(4 / 3).item()}


@pytest.mark.usefixtures("shapes_unchecked")
def test_exported_it_is_pytorchs_dropout():
    class Module(torch.nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.25)

    exported = torch.export.export(Module(), (torch.ones(8),))
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == ["aten.dropout.default"]
