"""The plan of a call: what attention layers need to know beside x, worked out once, at the door."""

from collections.abc import Callable
from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..ops.documents import check_segments, document_positions, within_documents
from ..ops.multihead import check_position_shape
from ..ops.ranges import check_length, check_positions
from .cache import KVCache
from .cached_mask import cached_mask
from .layer_cache import LayerCache, Slots
from .rope import RotaryEmbedding
from .timeline import one_pass


class Kind(NamedTuple):
    """What makes attention layers need plans of their own."""

    rope: RotaryEmbedding | None
    causal: bool
    window: int | None
    num_heads: int


class AttentionPlan(NamedTuple):
    """What an attention layer needs to know beside x and its cache: the same for all layers of a kind."""

    cos: Float[Tensor, "*positions 1 seq half"] | None = None
    sin: Float[Tensor, "*positions 1 seq half"] | None = None
    mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None
    causal: bool = False  # whether causality and the layer's window come on top of the mask
    slots: Slots | None = None  # of the new tokens in the layer's cache


@no_type_check  # in tests a wrapper around its methods would stop torch.compile
class Call:
    """A call at its door: its arguments, checked, and a plan for each kind of layer, made when first asked for.

    cache: of a model, or of one layer. Raises ShapeError, ConfigError and RangeError.
    """

    def __init__(
        self,
        x: Tensor,
        token_positions: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: LayerCache | KVCache | None = None,
    ) -> None:
        if x.ndim < 2:
            raise ShapeError(f"x must be (..., seq, d_model), but it is {tuple(x.shape)}.")
        if token_positions is not None:
            check_position_shape(token_positions, x)
        if segment_ids is not None:
            check_segments(segment_ids, x.shape[:-1], axes="(..., seq) = ")
        self.seq, self.dtype, self.device = x.shape[-2], x.dtype, x.device
        self.token_positions, self.mask, self.segment_ids, self.cache = token_positions, mask, segment_ids, cache
        self.arrival = None if cache is None else cache.arrive(x, segment_ids, exact=mask is not None)
        self._plans: list[tuple[Kind, int, AttentionPlan]] = []

    def plan(self, kind: Kind, layer: LayerCache | None = None) -> AttentionPlan:
        """The plan for attention of this kind. layer: its cache."""
        num_slots = 0 if layer is None else layer.slots
        for known, known_slots, plan in self._plans:
            if known.rope is kind.rope and known[1:] == kind[1:] and known_slots == num_slots:
                return plan
        cos, sin, mask, causal, slots = None, None, self.mask, kind.causal, None
        if kind.rope is not None:
            positions = self._positions(kind.rope).unsqueeze(-2)  # the same for all heads
            cos, sin = kind.rope.cos_sin(positions, self.dtype)
        if layer is not None and self.arrival is not None:
            mask, causal, slots = cached_mask(layer, self.arrival, mask, kind.num_heads, kind.causal, kind.window)
        elif self.segment_ids is not None:
            mask = within_documents(self.segment_ids, mask, kind.num_heads)
        plan = AttentionPlan(cos, sin, mask, causal, slots)
        self._plans.append((kind, num_slots, plan))
        return plan

    def done(self) -> None:
        """The layers have stored the tokens, which count when the pass around this call ends well."""
        if self.cache is not None and self.arrival is not None:
            self.cache.timeline.note(self.arrival, self.segment_ids)

    def _positions(self, rope: RotaryEmbedding) -> Tensor:
        """What the tokens are rotated by: what was asked for, or their places in the document or the cache."""
        positions, arrival = self.token_positions, self.arrival
        if positions is None and arrival is not None and arrival.before is not None:
            positions = arrival.places.clamp_min(0)  # padding has no place; where it is rotated to is never seen
        elif positions is None and arrival is None and self.segment_ids is not None:
            positions = document_positions(self.segment_ids)
        if positions is None:
            start = 0 if arrival is None else arrival.start
            check_length(start + self.seq, rope.max_seq_len)
            return torch.arange(start, start + self.seq, device=self.device)
        check_positions(positions, rope.max_seq_len)
        return positions


def planned(
    run: Callable[..., Tensor],
    kind: Kind | None,
    x: Tensor,
    token_positions: Tensor | None = None,
    *,
    mask: Tensor | None,
    segment_ids: Tensor | None,
    cache: LayerCache | None,
) -> Tensor:
    """run(plan=...), for a layer that is called alone and so makes its own plan, an empty one for attention of no kind.

    Its tokens count when all of it is done.
    """
    if cache is not None and not isinstance(cache, LayerCache):
        raise ConfigError(f"a block takes the cache of one layer, cache[i], not a {type(cache).__name__}.")
    with one_pass(cache):
        call = Call(x, token_positions, mask=mask, segment_ids=segment_ids, cache=cache)
        y = run(plan=AttentionPlan() if kind is None else call.plan(kind, cache))
        call.done()
        return y


def is_untouched(module: nn.Module, ours: type[nn.Module]) -> bool:
    """Whether the module runs the forward of this class of ours, on the arguments that it is called with."""
    # By the method, not the class: torch.export puts a subclass in the place of each.
    return type(module).forward is ours.forward and "forward" not in vars(module) and not module._forward_pre_hooks
