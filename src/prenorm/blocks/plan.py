"""Which blocks of a model share its plan."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..layers.attention import untouched_attention
from ..layers.layer_cache import LayerCache
from ..layers.plan import Call, is_untouched


def plan_for(
    block: nn.Module, forward: Callable[..., Any], attention: str, x: Tensor, call: Call, layer: LayerCache | None
) -> dict[str, Any]:
    """{"plan": the plan of this block} if it runs `forward` and its attention's forward unchanged; otherwise {}.

    A block without a plan is called with the arguments of the model's call and makes its own. layer: its cache.
    """
    # Hooks may have changed the number of tokens, the dtype or the device.
    if not is_untouched(block, forward) or (x.shape[-2], x.dtype, x.device) != (call.seq, call.dtype, call.device):
        return {}
    if layer is not None and block._compiled_call_impl is not None:
        return {}  # compiled on its own: a plan contains integers that change with every token, and would recompile it
    part = untouched_attention(getattr(block, attention))
    return {} if part is None else {"plan": call.plan(part, layer)}
