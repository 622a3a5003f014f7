"""Blocks that take their weights as a dictionary, as a Stanford course hands them to its learners.

A function that computes with them, as transformer_block(num_heads, weights, x), is made a block here; or a class
takes them in its constructor.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .meanings import INPUT, WEIGHTS

COURSE: dict[str, Sequence[str]] = {
    **{f"attn.{name}_proj.weight": ("d_model", "d_model") for name in ("q", "k", "v", "output")},
    "ln1.weight": ("d_model",),
    "ffn.w1.weight": ("d_ff", "d_model"),
    "ffn.w2.weight": ("d_model", "d_ff"),
    "ffn.w3.weight": ("d_ff", "d_model"),
    "ln2.weight": ("d_model",),
}
"""The weights of one block of the course, with their shapes."""


class Weighted(nn.Module):
    """Calls function(settings, its weights, x). shapes: of the weights, by the names under which it looks for them."""

    def __init__(
        self, function: Callable[..., Any], shapes: Mapping[str, Sequence[int]], settings: Mapping[str, Any]
    ) -> None:
        super().__init__()
        for name, shape in shapes.items():
            _put(self, name, shape)
        parameters = inspect.signature(function).parameters
        of_x = next(name for name in parameters if INPUT.search(name))
        of_weights = next(name for name in parameters if WEIGHTS.search(name))
        rest = [one for name, one in parameters.items() if name not in {of_x, of_weights, *settings}]

        def forward(x: Tensor, **others: Any) -> Any:
            return function(**settings, **others, **{of_x: x, of_weights: dict(self.named_parameters())})

        first = inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        by_name = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in rest if "VAR_" not in one.kind.name]
        forward.__signature__ = inspect.Signature([first, *by_name])  # type: ignore[attr-defined]
        self.forward = forward


def weighted(sizes: Mapping[str, Any]) -> Callable[..., Weighted]:
    """What a line calls to make such a block. sizes: d_model and d_ff of the course's weights."""

    def make(
        function: Callable[..., Any], shapes: Mapping[str, Sequence[int]] | None = None, **settings: Any
    ) -> Weighted:
        return Weighted(function, _course_shapes(sizes) if shapes is None else shapes, settings)

    return make


def course_weights(sizes: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The weights of one block of the course, by their names."""
    return {name: _initialised(shape) for name, shape in _course_shapes(sizes).items()}


def _course_shapes(sizes: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: [sizes[size] for size in shape] for name, shape in COURSE.items()}


def _put(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    """A parameter under a name with dots."""
    *path, last = name.split(".")
    for one in path:
        if one not in dict(module.named_children()):
            module.add_module(one, nn.Module())
        module = module.get_submodule(one)
    module.register_parameter(last, _initialised(shape))


def _initialised(shape: Sequence[int]) -> nn.Parameter:
    values = torch.ones(*shape)
    if len(shape) == 2:
        nn.init.trunc_normal_(values, std=(2 / sum(shape)) ** 0.5)
    return nn.Parameter(values)
