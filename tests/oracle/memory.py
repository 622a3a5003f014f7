"""How much a computation holds, counted in elements of tensors, so that no machine's allocator has a say."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation gives in one tensor, in backward passes too."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (x for x in tree_leaves(out) if isinstance(x, Tensor))
        self.elements = max([self.elements, *(x.untyped_storage().size() // x.element_size() for x in tensors)])
        return out


def elements_held(loss: Callable[[], Tensor]) -> tuple[int, int]:
    """Of a loss and its gradients: the elements of the largest tensor, and of all kept for the backward pass."""
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss().backward()
    return largest.elements, sum(kept)
