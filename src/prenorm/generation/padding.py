"""Rows of different lengths as one tensor, and back."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ConfigError
from .prompts import Prompts, token_lists


def pad(
    rows: Prompts, device: torch.device | str = "cpu", *, side: Literal["left", "right"] = "right"
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"] | None]:
    """Rows of token ids as one tensor, padded with id 0 to one length, and the segment_ids that go with it.

    segment_ids are 0 on tokens and -1 on padding, or None where nothing is padded: what a model's `segment_ids` takes,
    so that every row is as if it were alone. Raises ConfigError for a row that is empty or holds no token ids.
    """
    if side not in ("left", "right"):
        raise ConfigError(f"side must be 'left' or 'right', not {side!r}.")
    lists = token_lists(rows, "row")
    width = max(map(len, lists), default=0)
    token_ids, segment_ids = [], []
    for row in lists:
        missing = width - len(row)
        left, right = (missing, 0) if side == "left" else (0, missing)
        token_ids.append([0] * left + row + [0] * right)
        segment_ids.append([-1] * left + [0] * len(row) + [-1] * right)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=device).view(len(lists), width)
    if all(len(row) == width for row in lists):
        return ids, None
    return ids, torch.tensor(segment_ids, device=device)


def last_of_each_row(
    hidden: Float[Tensor, "batch seq d_model"], segment_ids: Int[Tensor, "batch seq"] | None
) -> Float[Tensor, "batch d_model"]:
    """What belongs to the last token of each row, the padding on its right left out."""
    if segment_ids is None:
        return hidden[:, -1]
    ends = (segment_ids >= 0).sum(-1) - 1
    return hidden[torch.arange(len(ends), device=ends.device), ends]
