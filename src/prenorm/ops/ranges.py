"""Checks on values: token ids and positions must lie inside the table that they look into."""

import torch
from torch import Tensor

from ..errors import RangeError


def check_range(values: Tensor, limit: int, *, what: str, rule: str) -> None:
    """Raise RangeError unless every integer of `values` is in [0, limit).

    On a CPU in eager mode the message has the numbers. Under compile, export and on other devices the check is an
    asynchronous assertion: no graph break and no synchronisation.
    """
    if values.is_meta:
        return
    if not at_hand(values):
        torch._assert_async(((values >= 0) & (values < limit)).all(), f"{what}: {rule}")
        return
    if values.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(values))
    if low < 0 or high >= limit:
        raise RangeError(f"{rule}, but {what} go from {low} to {high}; {limit - 1} is the largest that can be used.")


def at_hand(values: Tensor) -> bool:
    """Whether Python may look at them: without breaking a graph, and without waiting for a device."""
    return not torch.compiler.is_compiling() and values.is_cpu
