"""Rows of different lengths as one padded tensor, and their last tokens."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import ConfigError
from .prompts import Prompts, token_lists


def pad(
    rows: Prompts, device: torch.device | str = "cpu", *, side: Literal["left", "right"] = "right"
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"] | None]:
    """Rows of token ids as one tensor, padded with id 0 to one length, and the matching segment_ids.

    segment_ids are 0 at tokens and -1 at padding, or None without padding. Pass them to the model as `segment_ids`, so
    that each row gives the same result as on its own. Raises ConfigError for a row that is empty or holds no token ids.
    """
    if side not in ("left", "right"):
        raise ConfigError(f"side must be 'left' or 'right', not {side!r}.")
    tensors = [torch.tensor(row, device="cpu") for row in token_lists(rows, "row")]
    if not tensors:
        return torch.zeros(0, 0, dtype=torch.int64, device=device), None
    token_ids = pad_sequence(tensors, batch_first=True, padding_side=side)
    if all(len(row) == token_ids.shape[1] for row in tensors):
        return token_ids.to(device), None
    segments = [torch.zeros_like(row) for row in tensors]
    segment_ids = pad_sequence(segments, batch_first=True, padding_value=-1, padding_side=side)
    return token_ids.to(device), segment_ids.to(device)


def last_of_each_row(
    hidden: Float[Tensor, "batch seq d_model"], segment_ids: Int[Tensor, "batch seq"] | None
) -> Float[Tensor, "batch d_model"]:
    """The vector at the last token of each row, ignoring padding on its right."""
    if segment_ids is None:
        return hidden[:, -1]
    ends = (segment_ids >= 0).sum(-1) - 1
    return hidden[torch.arange(len(ends), device=ends.device), ends]
