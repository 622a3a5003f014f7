"""The record in which each kernel's file describes it; `ops/backends.py` lists the records and chooses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A function that may replace an op's formula, when it may, and the reason why it exists.

    All kernels of an op have one signature, the op's. supports: whether it may run on these inputs. gain: what was
    measured, with which command. fallback: what runs without it, at which cost. unavailable_reason: why this machine
    cannot run it; empty if it can.
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
