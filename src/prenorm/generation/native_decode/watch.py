"""Detecting changes of a model since the last step: its modules, hooks and tensors.

Each question is asked of all modules or tensors in one loop in C, because a step of a small model takes a millisecond.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ...private_torch import has_any_global_hook, layout_check

Place = tuple[dict[str, Any], str]  # a dict of a module, and a key


class ModuleWatch:
    """Watches the hooks and classes of modules, and the children of those that have any, but no other attributes.

    Other modules call no child, whatever is added to them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.types = list(map(type, modules))
        self.hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self.children = [module._modules for module in modules if module._modules]
        self.known = [dict(children) for children in self.children]

    def is_unchanged(self) -> bool:
        """Whether no module was hooked or replaced."""
        return (
            not any(self.hooks)
            and not has_any_global_hook()
            and list(map(type, self.modules)) == self.types
            and self.children == self.known
        )


class TensorWatch:
    """Watches the places of tensors: whether each still holds one, or None, of the same layout at the same address.

    Numbers that are changed in place need no watching: the kernel reads them from that address at every step. The
    memory must be kept alive meanwhile, or another tensor could come to lie there. Raises KeyError for a missing place.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        tensors: dict[str, list[dict[str, Any]]] = defaultdict(list)
        nones: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for home, name in {(id(home), name): (home, name) for home, name in places}.values():
            (nones if home[name] is None else tensors)[name].append(home)
        self.tensors, self.nones = _Places(tensors), _Places(nones)
        self.none = self.nones.fetch()
        found = self.tensors.fetch()
        self.has_same_layout = layout_check(found)
        self.addresses = list(map(Tensor.data_ptr, found))

    def is_unchanged(self) -> bool:
        """Whether all places hold what they held."""
        try:
            tensors, none = self.tensors.fetch(), self.nones.fetch()
        except KeyError:
            return False
        return (
            none == self.none
            and self.has_same_layout(tensors)
            and list(map(Tensor.data_ptr, tensors)) == self.addresses
        )


class _Places:
    """Dicts by the key that is of interest in them."""

    def __init__(self, homes: dict[str, list[dict[str, Any]]]) -> None:
        self.by_name: list[tuple[Callable[[Any], Any], list[dict[str, Any]]]]
        self.by_name = [(operator.itemgetter(name), found) for name, found in homes.items()]

    def fetch(self) -> list[Any]:
        """What they hold now. Raises KeyError where a key is missing."""
        return list(chain.from_iterable([map(get, homes) for get, homes in self.by_name]))
