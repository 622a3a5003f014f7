"""A kernel with a backward pass of its own may run in eager mode, with no tracing or dispatch mode."""

import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from prenorm.kernels.plain import is_plain

x = torch.ones(3)


class Subclass(torch.Tensor):
    """A tensor of another type."""


def seen(run):
    """What `is_plain` says of the tensor that a function is given by whoever runs it."""
    answers = []

    def look(x):
        answers.append(is_plain(x))
        return x * 2

    run(look)
    assert answers
    return answers


def jit_trace(look):
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, by a warning of another kind in each release
        torch.jit.trace(look, x, check_trace=False)


def in_mode(mode):
    def run(look):
        with mode:
            look(x)

    return run


WATCHED = {
    "fake tensors": lambda look: look(FakeTensorMode().from_tensor(x)),
    "a fake mode": in_mode(FakeTensorMode(allow_non_fake_inputs=True)),
    "make_fx": lambda look: make_fx(look)(x),
    "a FLOP counter": in_mode(FlopCounterMode(display=False)),
    "torch.jit.trace": jit_trace,
    "vmap": lambda look: torch.func.vmap(look)(x),
    "grad": lambda look: torch.func.grad(lambda x: look(x).sum())(x),
    "jvp": lambda look: torch.func.jvp(look, (x,), (x,)),
    "vjp": lambda look: torch.func.vjp(look, x),
    "functionalize": lambda look: torch.func.functionalize(look)(x),
    "a subclass": lambda look: look(x.as_subclass(Subclass)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")  # torch.func, of itself
@pytest.mark.parametrize("run", WATCHED.values(), ids=WATCHED)
def test_tensors_that_somebody_looks_on_are_not_plain(run):
    assert not any(seen(run))
    assert is_plain(x)


def test_forward_mode_differentiation_is_not_plain():
    with torch.autograd.forward_ad.dual_level():
        assert not is_plain(torch.autograd.forward_ad.make_dual(x, x))
        assert not is_plain(x)
    assert is_plain(x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated")
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_and_exported_code_is_not_plain():
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1 if is_plain(x) else x + 2

    assert torch.compile(Module(), backend="eager", fullgraph=True)(x).tolist() == [3, 3, 3]
    for strict in (False, True):
        exported = torch.export.export(Module(), (x,), strict=strict).module()
        assert exported(x).tolist() == [3, 3, 3]


def test_one_that_is_watched_makes_all_of_them():
    assert is_plain(x, torch.nn.Parameter(x))
    assert not is_plain(x, x.as_subclass(Subclass))
    assert not is_plain(x.as_subclass(Subclass), x)


def test_ordinary_tensors_are_plain_whatever_autograd_does():
    parameter = torch.nn.Parameter(x)
    assert is_plain(parameter, parameter * 2, x[:0], x.detach())
    with torch.no_grad():
        assert is_plain(parameter)
    with torch.inference_mode():
        assert is_plain(parameter * 2)
    assert seen(lambda look: torch.utils.checkpoint.checkpoint(look, parameter, use_reentrant=False)) == [True]
