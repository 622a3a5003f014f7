"""Which statements of a learner change tensors in place."""

import os
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import FOLDER, FRAMES

MOST_SITES = 200
DISPATCHING = ("_python_dispatch.py", "_compile.py", "eval_frame.py")  # between a statement and a dispatch mode
TORCH = os.path.dirname(torch.__file__)


class Watch(TorchDispatchMode):
    """Where the learner's code changed tensors in place: one site a statement."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[dict[str, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [list(one.shape) for one in args if isinstance(one, Tensor)]
        name = str(function.name()).removeprefix("aten::").partition(".")[0]
        result = function(*args, **(kwargs or {}))
        if name.endswith("_") and given and len(self.sites) < MOST_SITES and (frames := statements()):
            self.sites.append({"what": name, "shape": given[0], **frames[-1]})
        return result


def statements() -> list[dict[str, Any]]:
    """The statements that run and are neither torch's nor ours, from the outermost to the innermost."""
    return [
        {"file": frame.filename, "line": frame.lineno, "function": frame.name, "code": frame.line or ""}
        for frame in traceback.extract_stack(limit=60)
        if not frame.filename.startswith((FOLDER, TORCH, "<")) and not frame.filename.endswith(DISPATCHING)
    ][-FRAMES:]
