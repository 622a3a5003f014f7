"""What a kernel's file says about it, in one record; `ops/backends.py` lists the records and chooses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A function that may stand in for an op's formula, where it may, and the reason why it exists.

    instead: what would run without it, and what that costs; measured by the command that `reason` names.
    """

    op: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    run: Callable[..., Any]
    reason: str
    instead: str
    suits: Callable[..., bool] | None = None  # of the op's arguments; None: every shape
    why_not: Callable[[], str] | None = None  # why this machine cannot have it, empty where it can; None: all can
    in_library: bool = False  # whether its code is in the C++ library, cpu/native.py
