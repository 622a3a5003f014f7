"""The layers that a module stacks: then it is a model, or the trunk of one, and no block."""

from collections import Counter
from collections.abc import Iterator

from torch import nn

MATRICES = 4
"""A layer has at least so many, where queries, keys and values are in one; an expert or a head has three at most."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The name and shape of each parameter."""

CONTAINERS = frozenset(["ModuleList", "ModuleDict", "Sequential"])


def layers_of(module: nn.Module) -> list[str]:
    """The names of the classes of stacked layers: two or more that are alike, or one below an embedding of tokens.

    Those of containers only where no layer has a class of its own.
    """
    alike = Counter(_layers(module))
    embeds = any(isinstance(one, nn.Embedding) for one in module.children())
    beside = _flat(_shapes(module)) - sum(_flat(shapes) * count for (_, shapes), count in alike.items())
    if beside >= MATRICES:
        return []  # a block, with heads in a list
    names = {name for (name, _), count in alike.items() if count > 1 or embeds}
    return sorted(names - CONTAINERS or names)


def _layers(module: nn.Module) -> Iterator[tuple[str, Shapes]]:
    """What is in its containers and has a layer's matrices: the class, and all shapes."""
    for container in module.modules():
        if isinstance(container, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            for one in container.children():
                shapes = _shapes(one)
                if sum(len(shape) > 1 for _, shape in shapes) >= MATRICES:
                    yield type(one).__name__, shapes


def _shapes(module: nn.Module) -> Shapes:
    return tuple((name, tuple(one.shape)) for name, one in module.named_parameters())


def _flat(shapes: Shapes) -> int:
    """How many matrices these are, and not kernels of a convolution, or tables of positions."""
    return sum(len(shape) == 2 for _, shape in shapes)
