"""Checks on the positions that tokens are rotated by, or that are added to them."""

from torch import Tensor

from ..errors import RangeError, ShapeError
from .integers import check_integers
from .ranges import check_range


def check_positions(positions: Tensor, max_seq_len: int) -> None:
    """`check_range` for the positions that tokens are rotated by."""
    rule = f"positions must be in [0, max_seq_len) = [0, {max_seq_len})"
    check_range(positions, max_seq_len, what="the token positions", rule=rule)


def check_length(seq: int, max_seq_len: int) -> None:
    """Raise RangeError when `seq` tokens, at positions 0 .. seq-1, do not fit below max_seq_len."""
    if seq > max_seq_len:
        raise RangeError(
            f"positions must be in [0, max_seq_len) = [0, {max_seq_len}), but {seq} tokens need positions up to "
            f"{seq - 1}; max_seq_len={seq} would do, or token_positions below {max_seq_len}."
        )


def check_broadcast(token_positions: Tensor, x: Tensor) -> None:
    """Raise ShapeError unless the positions are integers that broadcast to the leading dims of x and its seq."""
    check_integers("token_positions", token_positions)
    rows = tuple(x.shape[:-1])
    ends = zip(token_positions.shape[::-1], rows[::-1], strict=False)
    if token_positions.ndim > len(rows) or any(size != 1 and size != row for size, row in ends):
        raise ShapeError(
            f"token_positions must broadcast to x's (..., seq) = {rows}, but they are {tuple(token_positions.shape)}."
        )


def check_position_shape(token_positions: Tensor, x: Tensor) -> None:
    """Raise ShapeError unless the positions are integers of shape (seq,) or (..., seq) with x's leading dims."""
    check_integers("token_positions", token_positions)
    rows = tuple(x.shape[:-1])
    fits = token_positions.ndim in (1, len(rows)) and token_positions.shape[-1] == rows[-1]
    leading = zip(token_positions.shape[:-1], rows[:-1], strict=False)
    if not fits or any(size != 1 and size != row for size, row in leading):  # `in` fails for sizes that compile varies
        raise ShapeError(
            f"token_positions must be (seq,) = {rows[-1:]} or (..., seq) = {rows}, but they are "
            f"{tuple(token_positions.shape)}."
        )
