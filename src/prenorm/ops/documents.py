"""Packed documents: several texts in one row, each as if it were alone.

segment_ids (..., seq): a document is a run of equal ids; a negative id is padding.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import ranges
from .integers import check_integers
from .masks import check_mask


def document_mask(segment_ids: Int[Tensor, "*batch seq"]) -> Bool[Tensor, "*batch 1 seq seq"]:
    """True where query and key lie in the same document; rows and columns of padding are all False."""
    runs = _document_numbers(segment_ids)
    is_token = segment_ids >= 0
    same = (runs[..., :, None] == runs[..., None, :]) & is_token[..., :, None] & is_token[..., None, :]
    return same.unsqueeze(-3)  # one axis for the heads


def within_documents(
    segment_ids: Int[Tensor, "*batch seq"], mask: Bool[Tensor, "*mask_batch q_or_1 seq"] | None, num_heads: int
) -> Bool[Tensor, "*any_batch seq seq"]:
    """`mask`, and only within a document: what an attention of x to itself may do. Raises ShapeError."""
    documents = document_mask(segment_ids)
    if mask is None:
        return documents
    seq = segment_ids.shape[-1]
    check_mask(mask, (*segment_ids.shape[:-1], num_heads, seq, seq))
    return mask & documents


def check_segments(segment_ids: Tensor, shape: tuple[int, ...], *, name: str = "segment_ids", axes: str = "") -> None:
    """Raise ShapeError unless there is one integer a token, of which there are `shape` (..., seq)."""
    check_integers(name, segment_ids, mask="torch.where(mask, 0, -1) says the same as a mask that is True for tokens")
    if segment_ids.shape != shape:
        raise ShapeError(
            f"{name} must have one id a token, {axes}{tuple(shape)}, but they are {tuple(segment_ids.shape)}."
        )


def document_positions(segment_ids: Int[Tensor, "*batch seq"]) -> Int[Tensor, "*batch seq"]:
    """Each token's position in its own document: 0, 1, 2, ... restarting where a document starts; 0 for padding."""
    places = torch.arange(segment_ids.shape[-1], device=segment_ids.device).expand(segment_ids.shape)
    if torch.compiler.is_exporting():  # ONNX has no cummax: the tokens of the document before this one are counted
        numbers = _document_numbers(segment_ids)
        before = (numbers[..., :, None] == numbers[..., None, :]) & (places[..., :, None] > places[..., None, :])
        return before.sum(-1).masked_fill(segment_ids < 0, 0)
    if segment_ids.numel() == 0:
        return places
    starts = torch.where(_document_starts(segment_ids), places, 0)
    # Any amount of padding fits, however short the model's sequences.
    return (places - starts.cummax(-1).values).masked_fill(segment_ids < 0, 0)


def document_lengths(
    segment_ids: Int[Tensor, "*batch seq"], token_positions: Int[Tensor, "*positions seq"]
) -> Int[Tensor, "*batch seq"]:
    """How long each token's document is: the largest position in it, and one more; 1 for padding."""
    if segment_ids.numel() == 0:
        return segment_ids
    numbers = _document_numbers(segment_ids)
    positions = token_positions.expand(segment_ids.shape).masked_fill(segment_ids < 0, 0)
    room = positions.new_zeros((*segment_ids.shape[:-1], segment_ids.shape[-1] + 1))
    return room.scatter_reduce(-1, numbers, positions, "amax").gather(-1, numbers) + 1


def cross_document_mask(
    segment_ids: Int[Tensor, "*batch seq"] | None, source_segment_ids: Int[Tensor, "*batch source_seq"] | None
) -> Bool[Tensor, "*batch 1 seq_or_1 source_seq"] | None:
    """True where a target token and a source token have the same segment id, and neither is padding.

    Without ids on one side that side is one document, which goes with the one document on the other.
    Raises ConfigError, in eager mode on a CPU only, when a row has two documents of one id (which of them would be
    meant?), several documents on one side alone, or a target document without a source.
    """
    if source_segment_ids is None:
        if segment_ids is None:
            return None
        _check_one_document(segment_ids, "target")
        return (segment_ids >= 0)[..., None, :, None]
    if segment_ids is None:
        _check_one_document(source_segment_ids, "source")
        return (source_segment_ids >= 0)[..., None, None, :]
    for ids in (segment_ids, source_segment_ids):
        _check_rows(
            document_counts(ids) > document_counts(ids.sort(-1).values),  # sorted, equal ids are one document
            "a target document reads the source document of the same id, so a row must not have two of one id, "
            "but row {row} has",
        )
    same = (segment_ids[..., :, None] == source_segment_ids[..., None, :]) & (segment_ids >= 0)[..., :, None]
    _check_rows(
        ((segment_ids >= 0) & ~same.any(-1)).any(-1),
        "every target document needs a source document of the same id, but row {row} has one without",
    )
    return same.unsqueeze(-3)


def document_counts(segment_ids: Int[Tensor, "*batch seq"]) -> Int[Tensor, "*batch"]:
    """How many documents each row holds; padding is none."""
    return (_document_starts(segment_ids) & (segment_ids >= 0)).sum(-1)


def _check_one_document(segment_ids: Tensor, side: str) -> None:
    _check_rows(
        document_counts(segment_ids) > 1,
        f"packed documents need segment ids for source and target, but row {{row}} of the {side} has several, and the "
        "other side has no ids",
    )


def _check_rows(wrong: Tensor, rule: str) -> None:
    if not ranges.host_readable(wrong) or not wrong.any():
        return
    rows = wrong.nonzero()[0].tolist()
    raise ConfigError(rule.format(row=rows[0] if len(rows) == 1 else tuple(rows)) + ".")


def _document_starts(segment_ids: Tensor) -> Tensor:
    # Rolled and not sliced: exported with a length that varies, slices would rule out the shortest ones.
    first = torch.arange(segment_ids.shape[-1], device=segment_ids.device) == 0
    return first | (segment_ids != segment_ids.roll(1, -1))


def _document_numbers(segment_ids: Tensor) -> Tensor:
    # Two runs with the same id are two documents, so runs are counted instead of comparing ids.
    return _document_starts(segment_ids).cumsum(-1)
