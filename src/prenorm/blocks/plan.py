"""Which blocks a model gives its plan to."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..layers.attention import ours
from ..layers.layer_cache import LayerCache
from ..layers.plan import Call, is_untouched


def plan_for(
    block: nn.Module, forward: Callable[..., Any], attention: str, x: Tensor, call: Call, layer: LayerCache | None
) -> dict[str, Any]:
    """{"plan": its plan} for a block that runs this forward of ours, on x, with attention of ours; {} for any other.

    A block that gets none is called with the arguments of the model's call, and makes its own. layer: its cache.
    """
    # Hooks may have made more or fewer tokens of those that the call is about, or numbers of another dtype.
    if not is_untouched(block, forward) or (x.shape[-2], x.dtype, x.device) != (call.seq, call.dtype, call.device):
        return {}
    if layer is not None and block._compiled_call_impl is not None:
        return {}  # compiled by itself: what stands in a cache is told in numbers, which change with every token
    part = ours(getattr(block, attention))
    return {} if part is None else {"plan": call.plan(part, layer)}
