"""The plan of a call: what attention layers need besides x, computed once, where the call enters."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..ops.documents import check_segments, document_lengths, document_positions, within_documents
from ..ops.position_checks import check_length, check_position_shape, check_positions
from ..private_torch import global_forward_pre_hooks
from .cache import KVCache, one_pass
from .cached_plan import cached_mask, cached_positions
from .layer_cache import LayerCache, Slots


class AttentionPlan(NamedTuple):
    """What an attention layer needs besides x and its cache: the same for all layers of a kind."""

    cos: Float[Tensor, "*positions 1 seq half"] | None = None
    sin: Float[Tensor, "*positions 1 seq half"] | None = None
    mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None
    causal: bool = False  # whether causality and the layer's window apply in addition to the mask
    slots: Slots | None = None  # where the layer's cache stores the new tokens


@no_type_check  # the type-checking wrappers of the tests would break torch.compile
class Call:
    """The checked arguments of a call, and a plan for each kind of layer, made when first needed.

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
        self._plans: list[tuple[object, AttentionPlan]] = []
        self._planned: list[LayerCache] = []

    def plan(self, attention: Any, layer: LayerCache | None = None) -> AttentionPlan:
        """The plan for a `SelfAttention` with this rotation, causality and window. layer: its cache."""
        rope, num_heads, causal, window = attention.rope, attention.num_heads, attention.causal, attention.window
        kind: tuple[object, ...] = (rope, num_heads, causal, window)
        if layer is not None:
            self._planned.append(layer)
            kind += (type(layer), layer.window, layer.keys.shape, torch.is_grad_enabled())
        for known, plan in self._plans:
            if known == kind:
                return plan
        cos, sin, mask, slots = None, None, self.mask, None
        if rope is not None:
            positions = self.positions(rope.max_seq_len)
            lengths = self._lengths(positions) if rope.by_length else None
            further = () if lengths is None else (lengths.unsqueeze(-2),)
            cos, sin = rope.cos_sin(positions.unsqueeze(-2), self.dtype, *further)  # the same for all heads
        if layer is not None and self.arrival is not None:
            mask, causal, slots = cached_mask(layer, self.arrival, mask, num_heads, causal, window)
        elif self.segment_ids is not None:
            mask = within_documents(self.segment_ids, mask, num_heads)
        plan = AttentionPlan(cos, sin, mask, causal, slots)
        self._plans.append((kind, plan))
        return plan

    def done(self) -> None:
        """Record that the planned layers have stored the tokens, which count once the enclosing pass succeeds."""
        if self.cache is not None and self.arrival is not None:
            for layer in self._planned:
                layer.note(self.arrival)
            self.cache.timeline.arrived = (self.arrival.stop, self.segment_ids)

    def positions(self, max_seq_len: int) -> Tensor:
        """The tokens' positions: what was asked for, or their places in the document or the cache; 0 for padding."""
        positions, segment_ids = self.token_positions, self.segment_ids
        if positions is None and self.arrival is not None:
            return cached_positions(self.arrival, max_seq_len)
        if positions is None and segment_ids is not None:
            positions = document_positions(segment_ids)
        if positions is None:
            check_length(self.seq, max_seq_len)
            return torch.arange(self.seq, device=self.device)
        check_positions(positions, max_seq_len)
        return positions

    def _lengths(self, positions: Tensor) -> Tensor | None:
        """The sequence length of each token: the cache's capacity or its document's length; None: the row's length."""
        if self.cache is not None:  # fixed from the start, because stored keys cannot be rotated again
            return torch.full_like(positions, self.cache.timeline.max_seq_len)
        return None if self.segment_ids is None else document_lengths(self.segment_ids, positions)


def planned(
    run: Callable[..., Tensor], attention: Any, x: Tensor, *given: Tensor | None, cache: object, **options: Any
) -> Tensor:
    """run(plan=...) for a layer that is called on its own, with a plan made for its attention.

    attention None: one that cannot take a plan; the plan is then empty. `given` and options: those of `Call`.
    """
    if cache is not None and not isinstance(cache, LayerCache):
        raise ConfigError(f"a block takes the cache of one layer, cache[i], not a {type(cache).__name__}.")
    with nullcontext() if cache is None else one_pass(cache):
        call = Call(x, *given, cache=cache, **options)
        y = run(plan=AttentionPlan() if attention is None else call.plan(attention, cache))
        call.done()
        return y


def is_untouched(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether the module runs exactly this forward, on the arguments that it is called with."""
    if "forward" in vars(module) or module._forward_pre_hooks or global_forward_pre_hooks:
        return False
    return type(module).forward is forward  # the class itself may differ: torch.export substitutes a subclass
