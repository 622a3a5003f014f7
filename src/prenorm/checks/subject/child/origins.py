"""Which statement of a learner gave each weight the numbers that the constructor leaves."""

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .watch import statements

MOST = 2000  # of operations, for constructors that fill tables entry by entry

Frames = list[dict[str, Any]]


class Origins(TorchDispatchMode):
    """Notes for the memory of every tensor the statement that wrote to it last."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[int, tuple[Tensor, Frames]] = {}  # with the tensors, so that no memory is used again
        self._left = MOST

    def of(self, block: nn.Module) -> dict[str, Frames]:
        """By parameter, the frames of that statement, from the outermost to the innermost."""
        found = {name: self._written.get(_memory(one)) for name, one in block.named_parameters(remove_duplicate=False)}
        return {name: written[1] for name, written in found.items() if written is not None}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {_memory(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        changes = function._schema.is_mutable
        for one in tree_leaves(result):
            # What shares the memory of an argument, and changes nothing, is a view of it.
            if isinstance(one, Tensor) and self._left and (changes or _memory(one) not in given):
                self._left -= 1
                self._written[_memory(one)] = one, statements()
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.device.type != "meta" else id(tensor.untyped_storage())
