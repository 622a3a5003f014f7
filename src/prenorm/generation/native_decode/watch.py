"""Detecting changes of a model since the last step: its modules, hooks and tensors."""

import operator
from collections.abc import Sequence

from torch import Tensor, nn

from ...private_torch import has_any_global_hook

get_version = operator.attrgetter("_version")


class ModuleWatch:
    """Watches the hooks, classes and children of modules, but not their other attributes."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.types = list(map(type, modules))
        self.hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self.children = [module._modules for module in modules]
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
    """Watches which tensors there are, their addresses and strides, and how often they were changed in place."""

    def __init__(self) -> None:
        self.tensors: Sequence[Tensor] = ()
        self.seen: tuple[object, ...] = ()

    def is_unchanged(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors of the last call, unchanged since."""
        before = self.tensors, self.seen
        try:
            versions: Sequence[object] = list(map(get_version, tensors))
        except RuntimeError:  # inference tensors have no version counter: treat them as changed
            versions = [object()]
        self.tensors = tensors
        self.seen = (versions, list(map(Tensor.data_ptr, tensors)), list(map(Tensor.stride, tensors)))
        return len(tensors) == len(before[0]) and all(map(operator.is_, tensors, before[0])) and self.seen == before[1]
