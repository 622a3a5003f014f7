"""One layer's part of the KV cache: keys and values of tokens already seen, by place, or in a ring."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..validation import as_size
from .timeline import Arrival, Timeline


class Slots(NamedTuple):
    """Where the new tokens of a call are stored, and what attention then reads. The same for all layers of a kind."""

    seq: int
    start: int
    """The first slot of the new tokens, which take those after it, too, unless `of_tokens` says otherwise."""

    of_tokens: Int[Tensor, " seq"] | Int[Tensor, "batch heads seq head_dim"] | None
    """The slot of each new token; where rows differ, one for each number of it, as `scatter_` takes them."""

    held: int
    """How many slots are read."""

    joined: bool
    """The slots are read before the new tokens are stored, and these beside them; otherwise afterwards."""

    wraps: bool
    """The new tokens may be stored over older ones, in a ring."""


class LayerCache:
    """One layer's keys and values, beside a timeline that says how many tokens each row holds.

    With a `window` it is a ring: the token at place p lies in slot p % slots, and only as many slots are held as a
    query can see, plus `rewind`, the most tokens that `rewind` may take back. Without a window, or when it is longer
    than max_seq_len, there is a slot for every place.
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
        batch_size = as_size("batch_size", batch_size, at_least=0)
        max_seq_len = as_size("max_seq_len", max_seq_len)
        rewind = as_size("rewind", rewind, at_least=0)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigError(f"a cache's dtype must be a floating point torch.dtype, not {dtype!r}.")
        self.max_seq_len, self.window, self.max_rewind = max_seq_len, window, rewind
        self.slots = max_seq_len if window is None else min(max_seq_len, window + rewind)
        # One slot more than can be used: that is where padding is written, so that shapes stay static.
        shape = (batch_size, num_kv_heads, self.slots + 1, head_dim)
        with torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.timeline = Timeline(batch_size, max_seq_len, device)
        self.ahead = 0  # columns of tokens that it has stored, and that do not count in the timeline yet
        self.columns: Tensor | None = None  # (batch, ahead): which of them are no padding; None: all
        self.overwritten = 0  # slots of older tokens that the running call has written over

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each row holds."""
        lengths = self.timeline.lengths()
        return lengths + (self.ahead if self.columns is None else self.columns.sum(-1)) if self.ahead else lengths

    @property
    def is_ring(self) -> bool:
        """Whether there are fewer slots than places."""
        return self.slots < self.max_seq_len

    @property
    def spare(self) -> int:
        """How many tokens of a ring that is full may be written over before one is lost that the next token sees."""
        return self.slots - (self.window or 0) + 1

    def needs_no_mask(self, window: int | None) -> bool:
        """Whether the next token of each row may attend to every slot that is filled once it is stored."""
        if type(self) is not LayerCache:  # which may keep it otherwise
            return False
        if self.is_ring:
            return self.slots == self.window == window
        return window is None or window >= self.max_seq_len

    def arrive(self, x: Tensor, segment_ids: Int[Tensor, "batch seq"] | None, *, exact: bool = False) -> Arrival:
        """The places of the next tokens in this layer. See `Timeline.arrive`."""
        return self.timeline.arrive(x, segment_ids, ahead=self.ahead, columns=self.columns, exact=exact)

    def note(self, arrival: Arrival) -> None:
        """It has stored these tokens."""
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
        """Where these tokens are stored, and the places of the keys that `store` gives, negative for what is no token.

        None instead of places: the i-th key is at place i, and what a shorter row does not have comes after its last
        token.
        """
        _, seq, start, stop, before, after, places, *_ = arrival
        # Compiled, a ring is taken to be full, so that it is not compiled again when it is; places hide what is empty.
        compiling = torch.compiler.is_compiling()
        wraps = self.is_ring and (compiling or stop > self.slots)
        tears = wraps and seq > self.spare  # some that the first of these tokens sees
        joined = tears or torch.is_grad_enabled()
        of_tokens = None
        if wraps or after is not None:
            padded = arrival.is_token is not None
            of_tokens = self._slots_of(places, stop if after is None else after, padded=padded, wraps=wraps)
        if of_tokens is not None and of_tokens.ndim == 2:
            _, num_kv_heads, _, head_dim = self.keys.shape
            of_tokens = of_tokens[:, None, :, None].expand(-1, num_kv_heads, -1, head_dim)
        if joined:
            # Where rows differ, `start` may be more than any row holds, and more than there are slots.
            held = min(start, self.slots) if not compiling else self.slots if wraps else start
            by_place = after is None and (not wraps or (not compiling and held == start))
            key_places = None if by_place else torch.cat((self._places_held(before, start, held), places), dim=-1)
        else:
            held = self.slots if wraps else stop
            key_places = self._places_held(after, stop, held) if wraps else None
        return Slots(seq, start, of_tokens, held, joined, wraps), key_places

    def store(
        self, k: Float[Tensor, "batch heads seq head_dim"], v: Float[Tensor, "batch heads seq head_dim"], slots: Slots
    ) -> tuple[Float[Tensor, "batch heads kv_seq head_dim"], Float[Tensor, "batch heads kv_seq head_dim"]]:
        """Store the keys and values of the next tokens; the keys and values that these may attend to, and others.

        Raises ShapeError for another batch size, heads or dtype.
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

        With a window that is shorter than max_seq_len, at most as many as `rewind` said when the cache was made.
        longest: how many tokens the longest row then has, if known; otherwise read from the device (synchronises).
        Raises RangeError and ShapeError; on a CPU only, as for token positions, RangeError.
        """
        self._check_alone("rewind")
        self.timeline.rewind(counts, longest=longest, most=self.max_rewind if self.is_ring else None)

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self._check_alone("reset")
        self.timeline.reset()
        self.ahead, self.columns, self.overwritten = 0, None, 0

    def _places_held(self, lengths: Tensor | None, length: int, held: int) -> Tensor:
        """The place of the newest token in each of the first `held` slots, negative for none: (held,) or (batch, held).

        Place p is in slot p % slots, so that slot s has the largest such p before the row's end.
        """
        slots = torch.arange(held, device=self.keys.device)
        last = length - 1 if lengths is None else lengths[:, None] - 1
        return last - (last - slots) % self.slots

    def _slots_of(self, places: Tensor, after: int | Tensor, *, padded: bool, wraps: bool) -> Tensor:
        """The slot of each new token; that which nobody reads for padding, and for what later ones would overwrite."""
        if not padded and not wraps:
            return places
        first = after[:, None] - self.slots if isinstance(after, Tensor) else after - self.slots
        return torch.where((places >= 0) & (places >= first), places % self.slots, self.slots)

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

    def _check_alone(self, what: str) -> None:
        if self.timeline.num_layers > 1:
            raise ConfigError(
                f"the layers of a model's cache hold the same tokens, so they {what} together: call {what} on the "
                "KVCache."
            )


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the results of a module are, and what they are: of whatever stands in the place of a layer of ours."""
    held = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    device, dtype = (held[0].device, held[0].dtype) if held else (torch.get_default_device(), torch.get_default_dtype())
    own = getattr(module, "dtype", None)
    return device, own if isinstance(own, torch.dtype) else dtype
