"""The bytes that the fullest rank needs in a training step."""

from ..activations import FLOAT32, blocks
from ..memory import CHUNK_ELEMENTS
from .parts import rank_parameters, slowest_stage
from .plan import Plan


def rank_bytes(plan: Plan) -> dict[str, int]:
    model, layout = plan.model, plan.layout
    mine = rank_parameters(plan)
    layers, _ = slowest_stage(plan)
    residual = plan.tokens * model.d_model * FLOAT32 // layout.tp
    inside = (
        sum(blocks(model, plan.micro_batch, plan.context, dtype=plan.dtype, kernels="pytorch")[0].values()) // layout.tp
    )
    each = inside * (0 if plan.every else 1) + residual * (1 if plan.every else 0)
    flight = min(plan.micro_batches, layout.pp)
    parts = {
        "weights": FLOAT32 * mine,
        "gradients": FLOAT32 * mine,
        "optimizer": 2 * FLOAT32 * mine,
        "activations": layers * each * flight + inside,
        "loss": 3 * FLOAT32 * CHUNK_ELEMENTS,
    }
    return {"total": sum(parts.values()), **parts}
