"""Tensors of integers: token ids, targets, positions, segment ids, counts. All are checked here, in the same words."""

from typing import Any

import torch

from ..errors import ShapeError

ACCEPTED = (torch.int64, torch.int32)


def check_integers(name: str, values: Any, *, device: torch.device | None = None, mask: str = "") -> None:
    """Raise ShapeError unless these are a plain tensor of int64 or int32 (on `device`, where one is given).

    mask: the way out where a mask is meant by what was given: True and False, or their floats.

    Narrower dtypes are refused, because arithmetic on them wraps around, and unsigned ones, because they have no -100.
    """
    if not isinstance(values, torch.Tensor):
        raise ShapeError(
            f"{name} must be a tensor of int64 or int32, but they are a {type(values).__name__}; "
            "torch.tensor(...) makes one."
        )
    if values.dtype not in ACCEPTED:
        is_mask = mask and (values.dtype == torch.bool or values.dtype.is_floating_point)
        way_out = mask if is_mask else ".long() makes them int64"
        raise ShapeError(f"{name} must be int64 or int32, but they are {values.dtype}; {way_out}.")
    if values.is_nested or values.layout != torch.strided:
        kind = "nested" if values.is_nested else str(values.layout).removeprefix("torch.")
        raise ShapeError(
            f"{name} must be a dense tensor, but they are {kind}; prenorm.pad makes rows of any lengths one tensor "
            "with segment_ids."
        )
    if device is not None and values.device != device:
        raise ShapeError(f"{name} must be on {device}, but they are on {values.device}; .to('{device}') moves them.")
