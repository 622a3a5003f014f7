"""Which blocks a model gives its plan to."""

from typing import Any

from torch import nn

from ..layers.attention import ours
from ..layers.layer_cache import LayerCache
from ..layers.plan import Call, is_untouched


def plan_for(
    block: nn.Module, cls: type[nn.Module], attention: str, call: Call, layer: LayerCache | None
) -> dict[str, Any]:
    """{"plan": its plan} for a block of this class of ours with attention of ours; {} for any other.

    A block that gets none is called with the arguments of the model's call, and makes its own. layer: its cache.
    """
    part = ours(getattr(block, attention)) if is_untouched(block, cls) else None
    return {} if part is None else {"plan": call.plan(part, layer)}
