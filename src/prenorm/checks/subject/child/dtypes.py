"""Where a tensor left the dtype of the block's input."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .tensors import held
from .watch import statements

WEIGHT, KEPT, MADE, CAST, COMBINED = "weight", "kept", "made", "cast", "combined"
"""How a tensor comes to another dtype: a parameter has it; what the block keeps beside its parameters has it; it was
made from nothing; it was computed from one of the input's dtype alone; or from such a one and one of another."""

Note = dict[str, Any]


class Dtypes(TorchFunctionMode):
    """Notes for every tensor in another floating dtype than home where it left it.

    A note is {"how", "dtype", "name": the parameter or buffer to blame, or "", "frames"}.
    """

    def __init__(self, block: nn.Module, home: torch.dtype) -> None:
        super().__init__()
        self.home = home
        self.failed: Note | None = None  # of what a call that raised was given beside a tensor of the input's dtype
        self._notes: dict[int, tuple[Tensor, Note]] = {}  # with the tensors, so that no other one gets their ids
        for how, named in ((KEPT, held(block)), (WEIGHT, block.named_parameters())):
            for name, tensor in named:
                self._note(tensor, how, name, [])

    def of(self, tensor: Tensor) -> Note | None:
        """The note of a tensor; None if it is in the input's dtype."""
        if tensor.dtype == self.home:
            return None
        return self._notes[id(tensor)][1] if id(tensor) in self._notes else self._note(tensor, MADE, "", [])

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if _has_numbers(one) and one.dim()]
        strays = [note for one in given if (note := self.of(one)) is not None]
        at_home = len(strays) < len(given)
        try:
            result = function(*args, **kwargs)
        except Exception:
            self.failed = strays[0] if strays and at_home else None
            raise
        for one in tree_leaves(result):
            if not _has_numbers(one) or one.dtype == self.home or id(one) in self._notes:
                continue
            if not strays:
                self._note(one, CAST if at_home else MADE, "", statements())
            elif at_home and strays[0]["how"] in (KEPT, MADE):
                self._note(one, COMBINED, strays[0]["name"], statements())
            else:  # it came from one that had left before
                self._notes[id(one)] = one, strays[0]
        return result

    def _note(self, tensor: Tensor, how: str, name: str, frames: list[dict[str, Any]]) -> Note:
        dtype = str(tensor.dtype).removeprefix("torch.")
        note = {"how": how, "dtype": dtype, "name": name, "frames": frames}
        self._notes[id(tensor)] = tensor, note
        return note


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
