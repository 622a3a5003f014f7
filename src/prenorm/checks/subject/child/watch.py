"""Which statements of a learner change tensors in place, and where float32 spreads."""

import os
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import FOLDER

MOST_SITES = 200
PROMOTED = "became float32"
DISPATCHING = ("_python_dispatch.py", "_compile.py", "eval_frame.py")  # between a statement and a dispatch mode
TORCH = os.path.dirname(torch.__file__)


class Watch(TorchDispatchMode):
    """Where the learner's code changed tensors in place, and where float32 spread: one site a statement."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[dict[str, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [(one.dtype, list(one.shape)) for one in args if isinstance(one, Tensor)]
        result = function(*args, **(kwargs or {}))
        name = str(function.name()).removeprefix("aten::").partition(".")[0]
        if name.endswith("_") and given:
            self._note(name, given[0][1])
        elif isinstance(result, Tensor) and result.dtype == torch.float32:
            wide = [shape for dtype, shape in given if dtype == torch.float32 and shape]
            if wide and any(dtype in (torch.bfloat16, torch.float16) for dtype, _ in given):
                self._note(PROMOTED, wide[0])
        return result

    def _note(self, what: str, shape: list[int]) -> None:
        if len(self.sites) < MOST_SITES and (frame := _learners_frame(nearest=what == PROMOTED)) is not None:
            self.sites.append({"what": what, "shape": shape, **frame})


def _learners_frame(*, nearest: bool) -> dict[str, Any] | None:
    """The innermost statement that is neither torch's nor ours; nearest: None where torch's Python lies in between."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        if frame.filename.startswith(FOLDER) or frame.filename.endswith(DISPATCHING):
            continue
        if not frame.filename.startswith((TORCH, "<")):
            return {"file": frame.filename, "line": frame.lineno, "function": frame.name, "code": frame.line or ""}
        if nearest:
            break
    return None
