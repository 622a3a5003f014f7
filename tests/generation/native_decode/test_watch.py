"""What is seen between two steps of decoding: other modules, hooks, and tensors that are others or lie elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prenorm import private_torch
from prenorm.generation.native_decode import watch
from prenorm.generation.native_decode.watch import ModuleWatch, TensorWatch
from prenorm.layers.linear import Linear


@pytest.fixture(params=["guards", "no guards"])
def check(request, monkeypatch):
    """With torch.compile's guards, and as where a release of torch lacks them."""
    if request.param == "no guards":
        monkeypatch.setattr("torch._C._dynamo.guards.TensorGuards", None)
    return request.param


def two() -> Any:
    torch.manual_seed(0)
    return nn.ModuleList([Linear(4, 4), Linear(4, 4, bias=True)])


def watched(modules: Any) -> TensorWatch:
    plain, biased = modules.children()
    places = [(one._parameters, "weight") for one in (plain, biased)]
    return TensorWatch([*places, places[0], (vars(plain), "bias"), (biased._parameters, "bias")])


def set_data(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    module.weight.data = change(module.weight.data)


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "another parameter": lambda one, other: setattr(one, "weight", nn.Parameter(torch.randn(4, 4))),
    "that of another layer": lambda one, other: setattr(one, "weight", other.weight),
    "other memory": lambda one, other: set_data(one, torch.clone),
    "a transposed view of the same memory": lambda one, other: set_data(one, torch.t),
    "less of the same memory": lambda one, other: set_data(one, lambda x: x[:2]),
    "the same memory, negated": lambda one, other: set_data(one, lambda x: torch._neg_view(x)),
    "another shape of the same memory": lambda one, other: set_data(one, lambda x: x.view(2, 8)),
    "a tensor of another class": lambda one, other: one._parameters.update(weight=one.weight.detach()),
    "another dtype": lambda one, other: one.double(),
    "no memory": lambda one, other: one.to("meta"),
    "a bias where there was none": lambda one, other: setattr(one, "bias", nn.Parameter(torch.ones(4))),
    "a bias that is gone": lambda one, other: setattr(other, "bias", None),
    "a bias that is deleted": lambda one, other: delattr(other, "bias"),
    "a weight that is deleted": lambda one, other: delattr(one, "weight"),
    "a weight under another name": lambda one, other: one.register_parameter("kernel", one._parameters.pop("weight")),
    "two that were swapped": lambda one, other: torch.utils.swap_tensors(one.weight, other.weight),
}


@pytest.mark.usefixtures("check")
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_is_another_or_lies_elsewhere_is_seen(change):
    modules = two()
    seen = watched(modules)
    assert seen.is_unchanged()
    memory = [one.untyped_storage() for one in modules.parameters()]  # which would else be free for the next tensor
    CHANGES[change](*modules.children())
    assert not seen.is_unchanged()
    assert memory


@pytest.mark.usefixtures("check")
def test_numbers_changed_in_place_and_another_parameter_over_the_same_memory_need_no_other_look():
    modules = two()
    seen = watched(modules)
    with torch.no_grad():
        modules[0].weight.mul_(2)
    modules[0].weight = nn.Parameter(modules[0].weight.detach())
    assert seen.is_unchanged()


def test_a_tensor_that_two_layers_share_is_watched_in_both():
    modules = two()
    modules[1].weight = modules[0].weight
    seen = watched(modules)
    assert seen.is_unchanged()
    modules[1].weight = nn.Parameter(modules[0].weight.clone())
    assert not seen.is_unchanged()


def test_a_place_that_is_missing_from_the_start_is_an_error():
    with pytest.raises(KeyError):
        TensorWatch([({}, "weight")])


def test_each_is_asked_in_one_call(monkeypatch):
    modules, asked = two(), []

    def layout_check(tensors: Sequence[Tensor]) -> Callable[[Sequence[Any]], bool]:
        check = private_torch.layout_check(tensors)
        return lambda others: asked.append(len(others)) or check(others)

    monkeypatch.setattr(watch, "layout_check", layout_check)
    assert watched(modules).is_unchanged()
    assert asked == [3]


class Other(Linear):
    """The same of another class."""


def test_hooks_classes_and_children_are_seen_and_other_attributes_are_not():
    changes: list[Callable[[Any], object]] = [
        lambda modules: modules[0].register_forward_hook(print),
        lambda modules: modules[1].register_forward_pre_hook(print),
        lambda modules: modules.__setitem__(0, Linear(4, 4)),
        lambda modules: modules.append(Linear(4, 4)),
        lambda modules: setattr(modules[1], "__class__", Other),
    ]
    for change in changes:
        modules = two()
        seen = ModuleWatch(list(modules.modules()))
        modules[0].note = "an attribute"
        modules[0].add_module("child", Linear(4, 4))  # which a Linear does not call
        assert seen.is_unchanged()
        change(modules)
        assert not seen.is_unchanged()
