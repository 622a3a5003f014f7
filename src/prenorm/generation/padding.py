"""Rows of different lengths as one tensor, and back."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def pad(
    rows: list[list[int]], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"] | None]:
    """The rows padded on the right with id 0, and their segment_ids: 0 on tokens, -1 on padding, None without any."""
    width = max(map(len, rows))
    token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    if all(len(row) == width for row in rows):
        return token_ids, None
    return token_ids, torch.tensor([[0] * len(row) + [-1] * (width - len(row)) for row in rows], device=device)


def last_of_each_row(
    hidden: Float[Tensor, "batch seq d_model"], segment_ids: Int[Tensor, "batch seq"] | None
) -> Float[Tensor, "batch d_model"]:
    """What belongs to the last token of each row, the padding on its right left out."""
    if segment_ids is None:
        return hidden[:, -1]
    ends = (segment_ids >= 0).sum(-1) - 1
    return hidden[torch.arange(len(ends), device=ends.device), ends]
