"""What a rank has: layers of a pipeline's stages, and parameters."""

from ..parameters import attention_matrices, feed_forward_matrices
from .plan import Plan


def slowest_stage(plan: Plan) -> tuple[int, int]:
    """The most layers of a device, and whether the head is on it, too (0 or 1)."""
    return -(-plan.model.num_layers // plan.layout.pp), 1


def rank_parameters(plan: Plan) -> int:
    """Parameters of the fullest rank."""
    model, layout = plan.model, plan.layout
    layers, _ = slowest_stage(plan)
    block = attention_matrices(model) + feed_forward_matrices(model)
    return -(
        -(layers * block + model.vocab_size * model.d_model * (2 if layout.pp == 1 and not model.tie_embeddings else 1))
        // (layout.tp * layout.fsdp)
    )
