"""One layer's part of the KV cache: the keys and values of past tokens, one slot per position or a ring buffer."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..validation import as_size
from .timeline import Arrival, Timeline


class Slots(NamedTuple):
    """Where a call stores its new tokens, and which slots attention then reads. The same for all layers of a kind."""

    seq: int
    start: int
    """The first slot of the new tokens, which are stored contiguously unless `of_tokens` is given."""

    of_tokens: Int[Tensor, " seq"] | Int[Tensor, "batch heads seq head_dim"] | None
    """The slot of each new token; where rows differ, the slot of each of its elements, the index of `scatter_`."""

    held: int
    """How many slots attention reads."""

    joined: bool
    """Whether attention reads the slots before storing, with the new tokens appended; otherwise after storing."""

    wraps: bool
    """Whether the new tokens may overwrite older ones, in a ring buffer."""


class LayerCache:
    """One layer's keys and values, and a timeline with the number of tokens in each row.

    With a `window` it is a ring buffer: the token at position p is in slot p % slots, and there are only as many slots
    as a query can attend to, plus `rewind`, the most tokens that `rewind` may take back. Without a window, or with one
    longer than max_seq_len, every position has a slot.
    Cached keys and values are constants to autograd; only the tokens of the current call get gradients.
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
        batch_size = as_size("batch_size", batch_size, at_least=0)
        max_seq_len = as_size("max_seq_len", max_seq_len)
        rewind = as_size("rewind", rewind, at_least=0)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigError(f"a cache's dtype must be a floating point torch.dtype, not {dtype!r}.")
        self.max_seq_len, self.window, self.max_rewind = max_seq_len, window, rewind
        self.slots = max_seq_len if window is None else min(max_seq_len, window + rewind)
        # One extra slot, where padding is written so that shapes stay static.
        shape = (batch_size, num_kv_heads, self.slots + 1, head_dim)
        with torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.timeline = Timeline(batch_size, max_seq_len, device)
        self.ahead = 0  # columns of tokens stored here that the timeline does not count yet
        self.columns: Tensor | None = None  # (batch, ahead): False for padding among them; None: no padding
        self.overwritten = 0  # slots of older tokens that the current call has overwritten

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        lengths = self.timeline.lengths()
        return lengths + (self.ahead if self.columns is None else self.columns.sum(-1)) if self.ahead else lengths

    @property
    def is_ring(self) -> bool:
        """Whether it is a ring buffer: fewer slots than positions."""
        return self.slots < self.max_seq_len

    @property
    def spare(self) -> int:
        """How many tokens of a full ring may be overwritten before the next token loses one that it attends to."""
        return self.slots - (self.window or 0) + 1

    def needs_no_mask(self, window: int | None) -> bool:
        """Whether, once stored, the next token of each row may attend to every filled slot."""
        if type(self) is not LayerCache:  # a subclass may lay out its slots differently
            return False
        if self.is_ring:
            return self.slots == self.window == window
        return window is None or window >= self.max_seq_len

    def arrive(self, x: Tensor, segment_ids: Int[Tensor, "batch seq"] | None, *, exact: bool = False) -> Arrival:
        """The cache positions of the next tokens in this layer. See `Timeline.arrive`."""
        return self.timeline.arrive(x, segment_ids, ahead=self.ahead, columns=self.columns, exact=exact)

    def note(self, arrival: Arrival) -> None:
        """Record that this layer has stored these tokens."""
        if not self.ahead:
            self.columns = arrival.is_token
        elif arrival.is_token is not None or self.columns is not None:
            shape = (arrival.batch_size, max(self.ahead, arrival.seq))
            ones = torch.ones(shape, dtype=torch.bool, device=self.keys.device)
            before = ones[:, : self.ahead] if self.columns is None else self.columns
            new = ones[:, : arrival.seq] if arrival.is_token is None else arrival.is_token
            self.columns = torch.cat((before, new), dim=1)
        self.ahead += arrival.seq

    def slots_for(self, arrival: Arrival) -> tuple[Slots, Int[Tensor, "*rows kv_seq"] | None]:
        """The slots of these tokens, and the positions of the keys that `store` returns, negative for empty slots.

        None instead of positions: the i-th key is at position i, and in a shorter row the keys after its last token are
        empty slots.
        """
        _, seq, start, stop, before, after, positions, *_ = arrival
        # Compiled code treats every ring as full, to avoid recompiling when it fills; positions mask the empty slots.
        compiling = torch.compiler.is_compiling()
        wraps = self.is_ring and (compiling or stop > self.slots)
        tears = wraps and seq > self.spare  # overwrites keys that the first new token attends to
        joined = tears or torch.is_grad_enabled()
        of_tokens = None
        if wraps or after is not None:
            padded = arrival.is_token is not None
            of_tokens = self._slots_of(positions, stop if after is None else after, padded=padded, wraps=wraps)
        if of_tokens is not None and of_tokens.ndim == 2:
            _, num_kv_heads, _, head_dim = self.keys.shape
            of_tokens = of_tokens[:, None, :, None].expand(-1, num_kv_heads, -1, head_dim)
        if joined:
            # Where rows differ, `start` may exceed the tokens of every row, and the number of slots.
            held = min(start, self.slots) if not compiling else self.slots if wraps else start
            in_order = after is None and (not wraps or (not compiling and held == start))
            key_positions = None if in_order else torch.cat((self._positions_held(before, start, held), positions), -1)
        else:
            held = self.slots if wraps else stop
            key_positions = self._positions_held(after, stop, held) if wraps else None
        return Slots(seq, start, of_tokens, held, joined, wraps), key_positions

    def store(
        self, k: Float[Tensor, "batch heads seq head_dim"], v: Float[Tensor, "batch heads seq head_dim"], slots: Slots
    ) -> tuple[Float[Tensor, "batch heads kv_seq head_dim"], Float[Tensor, "batch heads kv_seq head_dim"]]:
        """Store the keys and values of the next tokens, and return all keys and values that attention is to read.

        Raises ShapeError for another batch size, number of heads, head_dim or dtype.
        """
        self._check_fits(k)
        keys, values = self.keys[:, :, : slots.held], self.values[:, :, : slots.held]
        if slots.joined:
            keys, values = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
        if slots.wraps:
            self.overwritten += slots.seq
        for held, new in ((self.keys, k.detach()), (self.values, v.detach())):
            if slots.of_tokens is None:
                held[:, :, slots.start : slots.start + slots.seq] = new
            elif slots.of_tokens.ndim == 1:
                held[:, :, slots.of_tokens] = new
            else:
                held.scatter_(2, slots.of_tokens, new)
        return keys, values

    def rewind(self, counts: Int[Tensor, " batch"], *, longest: int | None = None) -> None:
        """Forget the newest counts[i] tokens of each row i.

        With a window shorter than max_seq_len, at most `rewind` tokens, the argument that the cache was made with.
        longest: the number of tokens that the longest row then has, if known; otherwise read from the device
        (synchronises). Raises ShapeError, and on a CPU RangeError, as for token positions.
        """
        self._check_standalone("rewind")
        self.timeline.rewind(counts, longest=longest, most=self.max_rewind if self.is_ring else None)

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self._check_standalone("reset")
        self.timeline.reset()
        self.ahead, self.columns, self.overwritten = 0, None, 0

    def _positions_held(self, lengths: Tensor | None, length: int, held: int) -> Tensor:
        """The position of the token in each of the first `held` slots, negative if empty: (held,) or (batch, held).

        Position p is in slot p % slots, so slot s holds the largest such p before the row's end.
        """
        slots = torch.arange(held, device=self.keys.device)
        last = length - 1 if lengths is None else lengths[:, None] - 1
        return last - (last - slots) % self.slots

    def _slots_of(self, positions: Tensor, after: int | Tensor, *, padded: bool, wraps: bool) -> Tensor:
        """The slot of each new token; the extra slot for padding, and for tokens that later ones would overwrite."""
        if not padded and not wraps:
            return positions
        first = after[:, None] - self.slots if isinstance(after, Tensor) else after - self.slots
        return torch.where((positions >= 0) & (positions >= first), positions % self.slots, self.slots)

    def _check_fits(self, k: Tensor) -> None:
        batch_size, num_kv_heads, _, head_dim = self.keys.shape
        if (k.shape[0], k.shape[1], k.shape[3]) != (batch_size, num_kv_heads, head_dim):
            raise ShapeError(
                f"this cache was made for batch size {batch_size}, {num_kv_heads} key/value heads and head_dim "
                f"{head_dim}, but the keys are {tuple(k.shape)}; make a cache for this batch and model."
            )
        if k.dtype != self.keys.dtype:
            raise ShapeError(
                f"this cache holds {self.keys.dtype}, but the keys are {k.dtype}; make_cache(dtype={k.dtype}) would do."
            )

    def _check_standalone(self, what: str) -> None:
        if self.timeline.num_layers > 1:
            raise ConfigError(
                f"the layers of a model's cache must hold the same tokens, but {what} was called on one of them; call "
                f"{what} on the KVCache."
            )


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a module's outputs, also for a module that replaces one of prenorm's layers."""
    held = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    device, dtype = (held[0].device, held[0].dtype) if held else (torch.get_default_device(), torch.get_default_dtype())
    own = getattr(module, "dtype", None)
    return device, own if isinstance(own, torch.dtype) else dtype
