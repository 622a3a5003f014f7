"""One layer's part of the KV cache: keys and values of tokens already seen, by place, or in a ring."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config import check_size
from ..errors import ConfigError, RangeError, ShapeError
from ..ops import ranges
from ..ops.documents import document_counts


class LayerCache:
    """One layer's keys and values, and how many tokens each row holds.

    Padding is never stored: a row's tokens have the places 0, 1, 2, ... whatever padding stood between them.
    With a `window` the cache is a ring: the token at place p lies in slot p % slots, and only as many slots are held as
    a query can see, plus `rewind`, the most tokens that `LayerCache.rewind` may take back. Without a window, or when
    it is longer than max_seq_len, there is a slot for every place.
    What is stored is a constant to autograd; the tokens of the current call get their gradients.
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        max_seq_len: int,
        head_dim: int,
        *,
        window: int | None = None,
        rewind: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 0:
            raise ConfigError(f"batch_size must be a whole number of at least 0, not {batch_size!r}.")
        check_size("max_seq_len", max_seq_len)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigError(f"a cache's dtype must be a floating point torch.dtype, not {dtype!r}.")
        if isinstance(rewind, bool) or not isinstance(rewind, int) or rewind < 0:
            raise ConfigError(f"rewind must be a whole number of at least 0, not {rewind!r}.")
        self.max_seq_len, self.window, self.most_rewind = max_seq_len, window, rewind
        self.slots = max_seq_len if window is None else min(max_seq_len, window + rewind)
        # One slot more than can be used: that is where padding is written, so that shapes stay static.
        shape = (batch_size, num_kv_heads, self.slots + 1, head_dim)
        with torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
            self.documents = torch.full((batch_size,), -1, device=device)  # the segment id of each row, once known
            # Tokens in each row, now and before rewinding: looked at only where rows differ (`ragged`).
            self._lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
            self._peaks = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.longest = 0  # at least the tokens in every row, known without asking the device
        self.ragged = False
        self._calls = 0  # that are running now, one inside the other
        self._unfinished = False

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        return self._lengths.clone() if self.ragged else torch.full_like(self._lengths, self.longest)

    def places(
        self, seq: int, real: Bool[Tensor, "batch seq"] | None = None
    ) -> Int[Tensor, " seq"] | Int[Tensor, "batch seq"]:
        """The places that `seq` further tokens will take in each row; -1 for padding (real = False)."""
        if real is None and not self.ragged:
            return torch.arange(self.longest, self.longest + seq, device=self._lengths.device)
        lengths = self.lengths[:, None]
        if real is None:
            return lengths + torch.arange(seq, device=lengths.device)
        return torch.where(real, lengths + real.cumsum(-1) - 1, -1)

    def check_document(self, segment_ids: Int[Tensor, "batch seq"]) -> None:
        """Raise ConfigError unless each row goes on with its one document, with padding only before or after it.

        Checked in eager mode on a CPU only: elsewhere it would wait for the device.
        """
        if not ranges.at_hand(segment_ids) or 0 in segment_ids.shape:
            return
        new = segment_ids.amax(-1)
        other = (self.documents >= 0) & (new >= 0) & (new != self.documents)
        wrong = ((document_counts(segment_ids) > 1) | other).nonzero()
        if len(wrong):
            row = int(wrong[0])
            held = int(self.documents[row])
            after = "" if held < 0 else f", after those of document {held} in the cache"
            raise ConfigError(
                f"with a cache a row holds one document, without a gap, but row {row} has segment ids "
                f"{segment_ids[row].unique_consecutive().tolist()[:5]}{after}; use one cache for each document, or "
                "pack documents without a cache."
            )

    def keep_document(self, segment_ids: Int[Tensor, "batch seq"]) -> None:
        """Remember each row's document, so that the next call can be checked."""
        if segment_ids.shape[-1]:
            new = segment_ids.amax(-1)
            self.documents.copy_(torch.where(new >= 0, new, self.documents))

    def append(
        self,
        k: Float[Tensor, "batch heads seq head_dim"],
        v: Float[Tensor, "batch heads seq head_dim"],
        real: Bool[Tensor, "batch seq"] | None = None,
        *,
        exact: bool = False,
    ) -> tuple[
        Float[Tensor, "batch heads kv_seq head_dim"],
        Float[Tensor, "batch heads kv_seq head_dim"],
        Int[Tensor, "*rows kv_seq"] | None,
    ]:
        """Store the keys and values of the next tokens; `exact` as in `longest_after`.

        Gives the keys and values that the new tokens may see, and others, with their places (kv_seq,) or
        (batch, kv_seq), negative for what is no token. None instead of places: the i-th is at place i, and what a
        shorter row does not have comes after its last token.
        Raises ShapeError for another batch size, heads or dtype, RangeError when there is no room.
        """
        self._check_fits(k)
        seq, start, places = k.shape[2], self.longest, self.places(k.shape[2], real)
        stop = self.longest_after(seq, real, exact=exact)
        ragged = self.ragged or real is not None
        before = self.lengths if ragged else start  # tokens in each row, or in all rows
        after = before + (seq if real is None else real.sum(-1))
        self._check_room(stop, after)
        self._unfinished = True
        # Compiled, a ring is taken to be full, so that it is not compiled again when it is; places hide what is empty.
        compiling = torch.compiler.is_compiling()
        ring = self.slots < self.max_seq_len and (compiling or stop > self.slots)
        overwrites = ring and seq > self.slots - (self.window or 0) + 1  # what the first of these tokens see
        if overwrites or torch.is_grad_enabled():
            # Where rows differ, `start` may be more than any row holds, and more than there are slots.
            held = min(start, self.slots) if not compiling else self.slots if ring else start
            keys, values = (torch.cat((x[:, :, :held], new), dim=2) for x, new in ((self.keys, k), (self.values, v)))
            by_place = not ragged and (not ring or (not compiling and held == start))
            key_places = None if by_place else torch.cat((self._places_held(before, held), places), dim=-1)
            self._store(k, v, places, after, ring=ring)
        else:
            held = self.slots if ring else stop
            self._store(k, v, places, after, ring=ring)
            keys, values = self.keys[:, :, :held], self.values[:, :, :held]
            key_places = self._places_held(after, held) if ring else None
        if isinstance(after, Tensor):
            self._lengths.copy_(after)
        self.longest, self.ragged = stop, ragged
        return keys, values, key_places

    @property
    def has_room(self) -> bool:
        """Whether every row has room for another token, as far as is known without asking the device."""
        return self.longest < self.max_seq_len

    def shows_all_that_is_seen(self, window: int | None) -> bool:
        """Whether the next token of each row sees all that is held once it is stored, and needs no mask."""
        if type(self) is not LayerCache:  # which may keep it otherwise
            return False
        if self.slots < self.max_seq_len:
            return self.slots == self.window == window
        return window is None or window >= self.max_seq_len

    def add(self, seq: int) -> None:
        """Count `seq` tokens more in each row, for who stores their keys and values at slots `place % slots`."""
        self._unfinished = True
        self.longest += seq
        if self.ragged:
            self._lengths += seq

    def longest_after(self, seq: int, real: Tensor | None, *, exact: bool = False) -> int:
        """How many tokens the longest row holds after `seq` further ones.

        Where padding comes in, or rows differ, it may be less than what this says, as long as that fits: the true
        number, `exact`, takes a question to the device.
        """
        most = self.longest + seq
        if real is None and not self.ragged:
            return most
        if torch.compiler.is_compiling():
            return min(most, self.max_seq_len)
        if exact or most > self.max_seq_len:
            lengths = self.lengths + (seq if real is None else real.sum(-1))
            most = int(lengths.max()) if len(lengths) else min(most, self.max_seq_len)
        return most

    def rewind(self, counts: Int[Tensor, " batch"], *, longest: int | None = None) -> None:
        """Forget the newest counts[i] tokens of each row i.

        With a window that is shorter than max_seq_len, at most as many as `rewind` said when the cache was made.
        longest: how many tokens the longest row then has, for who knows it; without it the device is asked.
        Raises RangeError and ShapeError; on a CPU only, as for token positions, RangeError.
        """
        self.check_whole()
        lengths = self.lengths
        self._check_rewind(counts, lengths)
        self._peaks.copy_(torch.maximum(self._peaks, lengths))
        self._lengths.copy_(lengths - counts)
        self.documents.masked_fill_(self._lengths == 0, -1)
        self.ragged = True
        if longest is None:
            longest = int(self._lengths.max()) if len(counts) else 0
        self.longest = longest

    def agrees(self, other: "LayerCache") -> bool:
        """Whether the rows hold as many tokens as those of another layer, as far as Python can tell without waiting."""
        if (self.ragged, self.longest) != (other.ragged, other.longest):
            return False
        return not self.ragged or not ranges.at_hand(self._lengths) or torch.equal(self._lengths, other._lengths)

    def follow(self, other: "LayerCache") -> None:
        """Rewind as another layer of the same model has done, without asking the device again how long rows are."""
        self._lengths.copy_(other._lengths)
        self._peaks.copy_(other._peaks)
        self.documents.copy_(other.documents)
        self.ragged, self.longest = other.ragged, other.longest

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self._lengths.zero_()
        self._peaks.zero_()
        self.documents.fill_(-1)
        self.longest, self.ragged, self._calls, self._unfinished = 0, False, 0, False

    def check_batch(self, batch_size: int) -> None:
        """Raise ShapeError unless the cache was made for this many rows."""
        if batch_size != len(self._lengths):
            raise ShapeError(
                f"this cache was made for batch size {len(self._lengths)}, but x has batch size {batch_size}; make a "
                "cache for this batch."
            )

    def begin(self) -> None:
        """A call that adds tokens begins. Raises ShapeError after one that an error stopped when it had stored some."""
        self.check_whole()
        self._calls += 1

    def check_whole(self) -> None:
        """Raise ShapeError when an error stopped an earlier call after some of its tokens had been stored."""
        if self._unfinished and not self._calls:
            raise ShapeError(
                "with this cache a forward pass stopped in the middle, after tokens had been stored, which would be in "
                "it twice if they were fed again; cache.reset() and feed all tokens again."
            )

    def end(self, *, well: bool) -> None:
        """The call ends, well or with an error."""
        self._calls -= 1
        if well and not self._calls:
            self._unfinished = False

    def _places_held(self, lengths: int | Tensor, held: int) -> Tensor:
        """The place of the newest token in each of the first `held` slots, negative for none: (held,) or (batch, held).

        Place p is in slot p % slots, so that slot s has the largest such p before the row's end.
        """
        slots = torch.arange(held, device=self._lengths.device)
        last = lengths[:, None] - 1 if isinstance(lengths, Tensor) else lengths - 1
        return last - (last - slots) % self.slots

    def _store(self, k: Tensor, v: Tensor, places: Tensor, after: int | Tensor, *, ring: bool) -> None:
        seq, start, slots = k.shape[2], self.longest, None
        if ring or isinstance(after, Tensor):
            first = after[:, None] - self.slots if isinstance(after, Tensor) else after - self.slots
            slots = torch.where((places >= 0) & (places >= first), places % self.slots, self.slots)
        for held, new in ((self.keys, k.detach()), (self.values, v.detach())):
            if slots is None:
                held[:, :, start : start + seq] = new
            elif slots.ndim == 1:
                held[:, :, slots] = new
            else:
                held.scatter_(2, slots[:, None, :, None].expand(new.shape), new)

    def _check_fits(self, k: Tensor) -> None:
        batch_size, num_kv_heads, _, head_dim = self.keys.shape
        if (k.shape[0], k.shape[1], k.shape[3]) != (batch_size, num_kv_heads, head_dim):
            raise ShapeError(
                f"this cache was made for batch size {batch_size}, {num_kv_heads} key heads and head_dim {head_dim}, "
                f"but the keys are {tuple(k.shape)}; make a cache for this batch and model."
            )
        if k.dtype != self.keys.dtype:
            raise ShapeError(
                f"this cache holds {self.keys.dtype}, but the keys are {k.dtype}; make_cache(dtype={k.dtype}) would do."
            )

    def _check_room(self, stop: int, after: int | Tensor) -> None:
        if stop > self.max_seq_len:
            raise RangeError(
                f"a cache holds at most max_seq_len = {self.max_seq_len} tokens, but {self.longest} are in it and "
                f"{stop - self.longest} more are to come; make_cache(max_seq_len={stop}) would do."
            )
        if isinstance(after, Tensor) and torch.compiler.is_compiling():
            torch._assert_async((after <= self.max_seq_len).all(), "a cache holds at most max_seq_len tokens")

    def _check_rewind(self, counts: Tensor, lengths: Tensor) -> None:
        if not isinstance(counts, Tensor) or counts.dtype.is_floating_point or counts.dtype == torch.bool:
            raise ShapeError(f"counts must be a tensor of whole numbers, one for each row, not {counts!r}.")
        if counts.shape != lengths.shape:
            raise ShapeError(f"counts must be one number a row, {tuple(lengths.shape)}, not {tuple(counts.shape)}.")
        if not ranges.at_hand(counts):
            return
        impossible = ((counts < 0) | (counts > lengths)).nonzero()
        if len(impossible):
            row = int(impossible[0])
            raise RangeError(
                f"a row can forget from 0 to all of its tokens, but row {row} has {int(lengths[row])} and should "
                f"forget {int(counts[row])}."
            )
        behind = torch.maximum(self._peaks, lengths) - lengths + counts
        most = self.most_rewind if self.slots < self.max_seq_len else self.max_seq_len
        too_far = (behind > most).nonzero()
        if len(too_far):
            row = int(too_far[0])
            raise RangeError(
                f"the cache of a window remembers no more than {most} tokens behind the most that a row has held, as "
                f"make_cache(rewind={most}) says, but row {row} would go back {int(behind[row])}; "
                f"make_cache(rewind={int(behind[row])}) would do."
            )
