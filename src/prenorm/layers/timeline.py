"""The timeline of a KV cache: how many tokens each row holds, and to which document they belong."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import ConfigError, RangeError, ShapeError
from ..ops import ranges
from ..ops.documents import document_counts
from ..ops.integers import check_integers
from ..private_torch import assert_async
from ..validation import as_size


class Arrival(NamedTuple):
    """The tokens that a call adds to a cache, and their positions in it.

    start, stop: upper bounds on the tokens in any row before and after, known without a device synchronisation.
    before, after: the tokens in each row, None where all rows have as many and there is no padding.
    cache_positions: -1 for padding. is_token: False for padding, None if there is none.
    """

    batch_size: int
    seq: int
    start: int
    stop: int
    before: Int[Tensor, " batch"] | None
    after: Int[Tensor, " batch"] | None
    cache_positions: Int[Tensor, " seq"] | Int[Tensor, "batch seq"]
    is_token: Bool[Tensor, "batch seq"] | None


class Timeline:
    """How many tokens each row of a cache holds, shared by all of its layers.

    Padding is never stored: the tokens of a row have positions 0, 1, 2, ... whatever padding was between them.
    A token counts once every layer has stored it and its call is done. Tokens that a layer has stored beyond that are
    its `ahead`, which is above 0 during a call, and between calls when layers are called one by one.
    """

    def __init__(self, batch_size: int, max_seq_len: int, device: torch.device | str | None = None) -> None:
        self.max_seq_len = max_seq_len
        self.num_layers = 1
        with torch.inference_mode(False):
            self.documents = torch.full((batch_size,), -1, device=device)  # the segment id of each row, once known
            # Tokens in each row, now and before rewinding: valid only where rows differ (`ragged`).
            self._lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
            self._peaks = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.longest = 0  # an upper bound on the tokens in any row, known without a device synchronisation
        self.ragged = False
        self.running = False  # whether a call is in progress
        self.torn = False  # whether a call failed after overwriting tokens that are still needed
        self.arrived: tuple[int, Tensor | None] = (0, None)  # the `stop` and the segment ids of the latest call

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        return len(self.documents)

    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        return self._lengths.clone() if self.ragged else torch.full_like(self._lengths, self.longest)

    def arrive(
        self,
        x: Tensor,
        segment_ids: Int[Tensor, "batch seq"] | None,
        *,
        ahead: int = 0,
        columns: Bool[Tensor, "batch ahead"] | None = None,
        exact: bool = False,
    ) -> Arrival:
        """The cache positions of x (batch, seq, d_model), after `ahead` columns of tokens that do not count yet.

        columns: False for padding among these. segment_ids: negative for padding. exact: where rows differ or there is
        padding, read the length of the longest row from the device; otherwise `stop` may exceed it, as long as it fits.
        Nothing is stored or counted. Raises ShapeError, and ConfigError for a second document in a row.
        """
        if x.ndim != 3:
            raise ShapeError(f"with a cache x must be (batch, seq, d_model), but it is {tuple(x.shape)}.")
        batch_size, seq, _ = x.shape
        self.check_batch(batch_size)
        if segment_ids is not None:
            self._check_documents(segment_ids)
        is_token = None if segment_ids is None else segment_ids >= 0
        start = self.longest + ahead
        before = after = None
        if self.ragged or columns is not None or is_token is not None:
            before = self.lengths() + (ahead if columns is None else columns.sum(-1))
            after = before + (seq if is_token is None else is_token.sum(-1))
        stop = self._longest_after(start + seq, after, exact=exact)
        if before is None:
            positions = torch.arange(start, start + seq, device=self.documents.device)
        elif is_token is None:
            positions = before[:, None] + torch.arange(seq, device=before.device)
        else:
            positions = torch.where(is_token, before[:, None] + is_token.cumsum(-1) - 1, -1)
        return Arrival(batch_size, seq, start, stop, before, after, positions, is_token)

    def check_batch(self, batch_size: int) -> None:
        """Raise ShapeError unless the cache has this many rows."""
        if batch_size != self.batch_size:
            raise ShapeError(
                f"this cache was made for batch size {self.batch_size}, but x has batch size {batch_size}; make a "
                "cache for this batch."
            )

    def check_room(self, arrival: Arrival) -> None:
        """Raise RangeError unless there is room for these tokens."""
        start, stop, after = arrival.start, arrival.stop, arrival.after
        if stop > self.max_seq_len:
            raise RangeError(
                f"a cache holds at most max_seq_len = {self.max_seq_len} tokens, but it has {start} and this call adds "
                f"{stop - start}; make_cache(max_seq_len={stop}) would do."
            )
        if after is not None and not ranges.has_values(after):
            assert_async((after <= self.max_seq_len).all(), "a cache holds at most max_seq_len tokens")

    def count(self, seq: int, columns: Bool[Tensor, "batch seq"] | None = None, *, stop: int | None = None) -> None:
        """Count `seq` more columns of tokens, which every layer has stored; columns: False for padding among them.

        stop: `longest` afterwards; default: it grows by `seq`, as if no column of the longest row were padding.
        """
        if self.ragged or columns is not None:
            self._lengths.copy_(self.lengths() + (seq if columns is None else columns.sum(-1)))
            self.ragged = True
        self.longest = min(self.longest + seq, self.max_seq_len) if stop is None else stop

    def keep_documents(self) -> None:
        """Remember the documents of the latest call, to check the next one against them."""
        segment_ids = self.arrived[1]
        if segment_ids is not None and segment_ids.shape[-1]:
            new = segment_ids.amax(-1)
            self.documents.copy_(torch.where(new >= 0, new, self.documents))

    def take_back(self, lengths: Int[Tensor, " batch"], overwritten: int) -> None:
        """Account for a failed call that overwrote slots, as if its tokens had been stored and then rewound."""
        self._peaks.copy_(torch.maximum(self._peaks, lengths + overwritten - 1))  # a ring has one slot to spare

    def rewind(self, counts: Int[Tensor, " batch"], *, longest: int | None, most: int | None) -> None:
        """Forget the newest counts[i] tokens of each row i. most: how many tokens a ring holds beyond its window.

        longest: the number of tokens that the longest row then has, if known; otherwise read from the device
        (synchronises). Raises ShapeError, and on a CPU RangeError, as for token positions.
        """
        self.check_whole()
        lengths = self.lengths()
        self._check_rewind(counts, lengths, most)
        self._peaks.copy_(torch.maximum(self._peaks, lengths))
        self._lengths.copy_(lengths - counts)
        self.documents.masked_fill_(self._lengths == 0, -1)
        self.ragged = True
        if longest is None:
            longest = int(self._lengths.max()) if len(counts) else 0
        self.longest = as_size("longest", longest, at_least=0)

    def reset(self) -> None:
        """Forget everything."""
        self._lengths.zero_()
        self._peaks.zero_()
        self.documents.fill_(-1)
        self.longest, self.ragged, self.torn = 0, False, False

    def check_whole(self) -> None:
        """Raise ShapeError if a call failed after overwriting tokens that are still needed."""
        if self.torn:
            raise ShapeError(
                "an earlier forward pass failed after overwriting tokens that the window still needs; call "
                "cache.reset() and feed all tokens again."
            )

    def _longest_after(self, most: int, after: Tensor | None, *, exact: bool) -> int:
        if after is None:
            return most
        if not ranges.has_values(after):
            return min(most, self.max_seq_len)
        if exact or most > self.max_seq_len:
            most = int(after.max()) if len(after) else min(most, self.max_seq_len)
        return most

    def _check_documents(self, segment_ids: Tensor) -> None:
        """Raise ConfigError unless each row continues a single document, with padding only before or after it."""
        if not ranges.host_readable(segment_ids) or 0 in segment_ids.shape:
            return
        new = segment_ids.amax(-1)
        other = (self.documents >= 0) & (new >= 0) & (new != self.documents)
        wrong = ((document_counts(segment_ids) > 1) | other).nonzero()
        if len(wrong):
            row = int(wrong[0])
            held = int(self.documents[row])
            after = "" if held < 0 else f", and the cache holds document {held}"
            raise ConfigError(
                f"with a cache a row must be one document without gaps, but row {row} has segment ids "
                f"{segment_ids[row].unique_consecutive().tolist()[:5]}{after}; use one cache per document, or pack "
                "documents without a cache."
            )

    def _check_rewind(self, counts: Tensor, lengths: Tensor, most: int | None) -> None:
        check_integers("counts", counts)
        if counts.shape != lengths.shape:
            raise ShapeError(
                f"counts must have one number per row, {tuple(lengths.shape)}, but its shape is {tuple(counts.shape)}."
            )
        if not ranges.host_readable(counts):
            return
        impossible = ((counts < 0) | (counts > lengths)).nonzero()
        if len(impossible):
            row = int(impossible[0])
            raise RangeError(
                f"counts must be from 0 to the number of tokens in the row, but row {row} has {int(lengths[row])} "
                f"tokens and counts {int(counts[row])}."
            )
        behind = torch.maximum(self._peaks, lengths) - lengths + counts
        too_far = (behind > (self.max_seq_len if most is None else most)).nonzero()
        if len(too_far):
            row = int(too_far[0])
            raise RangeError(
                f"a windowed cache made with rewind={most} can go back at most {most} tokens from the most that a row "
                f"has held, but row {row} would go back {int(behind[row])}; "
                f"make_cache(rewind={int(behind[row])}) would do."
            )
