"""Checks on values: token ids and positions must lie inside the table that they look into."""

import torch
from torch import Tensor

from ..errors import RangeError
from ..private_torch import (
    FakeTensor,
    assert_async,
    get_tracing_state,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    len_torch_dispatch_stack,
)


def check_range(values: Tensor, limit: int, *, what: str, rule: str) -> None:
    """Raise RangeError unless every integer of `values` is in [0, limit).

    On a CPU in eager mode the message has the numbers. Under compile, export and on other devices the check is an
    asynchronous assertion: no graph break and no synchronisation.
    """
    if values.is_meta:
        return
    values = _underlying(values)
    if not host_readable(values):
        assert_async(((values >= 0) & (values < limit)).all(), f"{what}: {rule}")
        return
    if values.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(values))
    if low < 0 or high >= limit:
        raise RangeError(f"{rule}, but {what} go from {low} to {high}; {limit - 1} is the largest that can be used.")


def host_readable(values: Tensor) -> bool:
    """Whether Python can read the values without breaking a graph and without a device synchronisation."""
    return values.is_cpu and has_values(values)


def has_values(values: Tensor) -> bool:
    """Whether Python can read the values, if need be with a device synchronisation.

    There are none in compiled, exported or traced code, in fake tensors, or within torch.func.vmap.
    """
    return (
        not torch.compiler.is_compiling()
        and not values.is_meta
        and not is_functorch_wrapped_tensor(values)
        and not len_torch_dispatch_stack()
        and get_tracing_state() is None
        and not isinstance(values, FakeTensor)
    )


def _underlying(values: Tensor) -> Tensor:
    """All rows of a vmap in one, and the plain tensor under torch.func's wrappers: a range is the same for each."""
    if torch.compiler.is_compiling():
        return values
    while is_functorch_wrapped_tensor(values):
        values = get_unwrapped(values)
    return values
