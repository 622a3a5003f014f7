"""Packed documents: several texts in one row, each as if it were alone.

segment_ids (..., seq): a document is a run of equal ids; a negative id is padding.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def document_mask(segment_ids: Int[Tensor, "*batch seq"]) -> Bool[Tensor, "*batch 1 seq seq"]:
    """True where query and key lie in the same document; rows and columns of padding are all False."""
    runs = _document_numbers(segment_ids)
    real = segment_ids >= 0
    same = (runs[..., :, None] == runs[..., None, :]) & real[..., :, None] & real[..., None, :]
    return same.unsqueeze(-3)  # one axis for the heads


def document_positions(segment_ids: Int[Tensor, "*batch seq"]) -> Int[Tensor, "*batch seq"]:
    """Each token's position in its own document: 0, 1, 2, ... restarting where a document starts."""
    places = torch.arange(segment_ids.shape[-1], device=segment_ids.device).expand(segment_ids.shape)
    starts = torch.where(_document_starts(segment_ids), places, 0)
    return places - starts.cummax(-1).values if segment_ids.numel() else places


def document_counts(segment_ids: Int[Tensor, "*batch seq"]) -> Int[Tensor, "*batch"]:
    """How many documents each row holds; padding is none."""
    return (_document_starts(segment_ids) & (segment_ids >= 0)).sum(-1)


def _document_starts(segment_ids: Tensor) -> Tensor:
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[..., 1:] = segment_ids[..., 1:] != segment_ids[..., :-1]
    return starts


def _document_numbers(segment_ids: Tensor) -> Tensor:
    # Two runs with the same id are two documents, so runs are counted instead of comparing ids.
    return _document_starts(segment_ids).cumsum(-1)
