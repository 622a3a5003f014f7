"""Layers of a user's own that can be split: found by trying, on one rank, with random numbers.

A module with linear maps x -> ... -> y can be split if there is a last map, and perhaps integers such as num_heads,
so that the sum over the parts equals the whole: each part with some rows of the other maps, some columns of the last
one and the integers divided. What passes is split so; nothing is guessed from names.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.embedding import Embedding
from .tensor_parallel import SplitLayer, is_linear_map, term_of

MOST_COUNTS = 3  # integers of a layer that are divided at once
MOST_TRIED = 2000  # ways to split a layer
Calls = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


def own_layers(module: nn.Module, ranks: int, style_of: Callable[[nn.Module], object]) -> dict[str, SplitLayer]:
    """The styles of those layers of a module that can be split between this many ranks, by name.

    style_of: whether a layer is one of ours, which are known. A module that has others is called once with random
    numbers, (2, 2 * ranks, width), in eval mode. Raises ConfigError where that fails.
    """
    found: dict[str, SplitLayer] = {}
    calls = _calls(module, list(_unknown(module, style_of)), ranks)
    for name, (args, options) in calls.items():
        if any(name.startswith(f"{other}.") for other in found):
            continue  # a part of one that is split
        style = _style(module.get_submodule(name), args, options, ranks)
        if style is not None:
            found[name] = style
    return found


def _unknown(module: nn.Module, style_of: Callable[[nn.Module], object], name: str = "") -> Iterator[str]:
    """The names of the modules with several linear maps that are not ours, from the outside in."""
    if style_of(module):
        return
    if len(_linear_maps(module)) > 1:
        yield name
    for child, part in module.named_children():
        yield from _unknown(part, style_of, f"{name}.{child}" if name else child)


def _calls(module: nn.Module, names: list[str], ranks: int) -> Calls:
    """The arguments with which each of these modules is called."""
    if not names:
        return {}
    weight = _weight(next(iter(_linear_maps(module.get_submodule(names[0])).values())))
    shape = (2, 2 * ranks, weight.shape[1])
    calls: Calls = {}

    def noting(name: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            calls[name] = (args, options)

        return note

    tried = _copy_with_its_weights(module)  # the module may keep, or count, what it is called with
    hooks = [tried.get_submodule(name).register_forward_pre_hook(noting(name), with_kwargs=True) for name in names]
    modes = {part: part.training for part in tried.modules()}
    try:
        generator = torch.Generator().manual_seed(0)  # the same on all ranks
        with torch.no_grad():
            tried.eval()(torch.randn(shape, generator=generator).to(weight.device, weight.dtype))
    except Exception as error:
        raise ConfigError(
            f"the layers of a {type(module).__name__} are found by calling it with x of shape {shape}, which failed "
            f"({type(error).__name__}: {error}); name them: "
            'styles={"attn": SplitLayer(("q", "k", "v"), ("o",), counts=("num_heads",))}.'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes.items():
            part.training = mode
    return calls


def _copy_with_its_weights(module: nn.Module) -> nn.Module:
    """A copy that has the same parameters, not copies of them; the module itself where it cannot be copied."""
    try:
        return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})
    except (RuntimeError, TypeError):
        return module


def _linear_maps(module: nn.Module) -> dict[str, nn.Module]:
    """The module's direct submodules with a weight (out_features, in_features) and perhaps a bias."""
    return {name: child for name, child in module.named_children() if _is_linear_map(child)}


def _is_linear_map(module: nn.Module) -> bool:
    is_leaf = next(module.children(), None) is None
    return is_leaf and is_linear_map(module) and not isinstance(module, Embedding | nn.Embedding)


def _weight(linear: nn.Module) -> Tensor:
    weight = linear._parameters["weight"]
    assert weight is not None
    return weight


def _style(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any], ranks: int) -> SplitLayer | None:
    """The way to split this layer whose parts sum to the whole; None if there is none."""
    try:
        trial = copy.deepcopy(layer).eval()
    except (RuntimeError, TypeError):
        return None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trial.parameters():  # zeros, as some last maps begin with, would show nothing
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))
        expected = term_of(trial(*args, **options))
        if expected is None or not expected.is_floating_point():
            return None
        for style in itertools.islice(_ways(trial, ranks), MOST_TRIED):
            if _sums_up(trial, style, args, options, ranks, expected):
                return style
    return None


def _ways(layer: nn.Module, ranks: int) -> Iterator[SplitLayer]:
    """All ways to split a layer: the last map, which is tried from the end, and the integers that are divided."""
    maps = _linear_maps(layer)
    counts = [
        name
        for name, value in vars(layer).items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and value % ranks == 0
    ]
    for last in reversed(maps):
        first = tuple(name for name in maps if name != last)
        if _weight(maps[last]).shape[1] % ranks or any(_weight(maps[name]).shape[0] % ranks for name in first):
            continue
        for number in range(min(len(counts), MOST_COUNTS) + 1):
            for divided in itertools.combinations(counts, number):
                yield SplitLayer(first, (last,), divided)


def _sums_up(
    layer: nn.Module, style: SplitLayer, args: tuple[Any, ...], options: dict[str, Any], ranks: int, expected: Tensor
) -> bool:
    """Whether the outputs of all parts sum to the whole layer's."""
    total = torch.zeros_like(expected, dtype=torch.promote_types(expected.dtype, torch.float32))
    for rank in range(ranks):
        part = _part(layer, style, rank, ranks)
        try:
            term = term_of(part(*args, **options))
        except Exception:  # shapes that do not fit are the usual way to learn that this is not it
            return False
        if term is None or term.shape != expected.shape:
            return False
        total += term
    tolerance = 200 * torch.finfo(expected.dtype).eps
    return bool((total - expected).norm() <= tolerance * expected.norm()) and bool(expected.norm() > 0)


def _part(layer: nn.Module, style: SplitLayer, rank: int, ranks: int) -> nn.Module:
    """A copy of the layer that computes what one rank would."""
    part = copy.deepcopy(layer)
    for name in style.counts:
        setattr(part, name, getattr(part, name) // ranks)
    for name in style.first:
        parameters = part.get_submodule(name)._parameters
        for one, value in parameters.items():
            parameters[one] = None if value is None else nn.Parameter(value.chunk(ranks)[rank])
    for name in style.last:
        parameters = part.get_submodule(name)._parameters
        parameters["weight"] = nn.Parameter(_weight(part.get_submodule(name)).chunk(ranks, dim=1)[rank])
        if (bias := parameters.get("bias")) is not None and rank > 0:
            parameters["bias"] = nn.Parameter(torch.zeros_like(bias))
    return part
