"""The record in which each kernel's file describes it; `ops/backends.py` lists the records and chooses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A function that may stand in for an op's formula, where it may, and the reason why it exists.

    All kernels of an op are called alike, with its arguments. supports: whether it may be, from the inputs. gain: what
    was measured, by which command. fallback: what runs without it, and what that costs. unavailable_reason: why this
    machine cannot have it, empty where it can.
    """

    op: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    run: Callable[..., Any]
    gain: str
    fallback: str
    supports: Callable[..., bool] | None = None  # None: all inputs of these devices and dtypes
    unavailable_reason: Callable[[], str] | None = None  # None: every machine has it
    in_library: bool = False  # whether its code is in the C++ library, cpu/native.py
