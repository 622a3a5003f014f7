"""The seconds of a training step on a cluster, from the rates of its devices and links.

Counted are matrix products, attention, the passes over memory of everything else, recomputation, the collectives that
nothing hides, the pipeline's bubble and the optimiser. Products and attention are those of the largest shapes. Not
counted: what smaller matrices reach less, launches, imbalance between devices, input, and logging.
"""

from dataclasses import dataclass

from .. import flops
from ..parameters import attention_matrices, feed_forward_matrices
from .collectives import Collective, block_collectives, edge_collectives
from .hardware import ATTENTION_BACKWARD_SHARE, ATTENTION_FORWARD_SHARE, MEMORY_SHARE, Cluster
from .plan import Plan

Seconds = dict[str, float]

# Passes over a float of each kind, reading or writing it once, of all that is neither a product nor attention.
NORM_PASSES = (5, 6)  # forward: the norm, and adding a branch to the stream; backward: the norm's, and the sum
ROTATION_PASSES = (2, 2)
GATED_PASSES, PLAIN_PASSES = (3, 5), (2, 3)
LOGIT_PASSES = 5  # written, read by the softmax, the gradient written, and read by two products
BACKWARD_ATTENTION = 2.5  # products of its backward pass to those of its forward pass: the scores are computed again
ADAMW_BYTES = 32  # weight, gradient and two averages read, weight and averages written, gradients read for their norm


@dataclass(frozen=True, slots=True)
class _Work:
    """Seconds of a block's or the head's pass over a micro-batch."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor_parallel: float = 0.0

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elementwise + self.tensor_parallel


def step_seconds(plan: Plan, cluster: Cluster) -> Seconds:
    """The seconds of a step, by what they are spent on, with their "total"."""
    layers, has_head = slowest_stage(plan)
    forward, backward, again, head = _block(plan, cluster)
    gathering = _exposed_gathers(plan, cluster, forward.total, backward.total + again.total)
    micro_batch: Seconds = {
        "products": layers * (forward.products + backward.products) + has_head * head.products,
        "attention": layers * (forward.attention + backward.attention),
        "elementwise": layers * (forward.elementwise + backward.elementwise) + has_head * head.elementwise,
        "recomputation": layers * again.total,
        "tensor_parallel": layers * (forward.tensor_parallel + backward.tensor_parallel)
        + has_head * head.tensor_parallel,
        "sharding": layers * gathering,
    }
    whole = sum(micro_batch.values())
    parts = {name: seconds * plan.micro_batches for name, seconds in micro_batch.items()}
    parts["bubble"] = whole * (plan.layout.pp - 1) / plan.stages_per_rank
    parts["pipeline_sends"] = 2 * (plan.layout.pp - 1) * sum(_times(plan, cluster, edge_collectives(plan), "pp"))
    last_backward = layers * (backward.total + again.total)
    parts["gradients"] = max(0.0, layers * sum(_times(plan, cluster, block_collectives(plan), "dp")) - last_backward)
    parts["optimizer"] = rank_parameters(plan) * ADAMW_BYTES / (cluster.memory_bytes_per_second * MEMORY_SHARE)
    return {"total": sum(parts.values()), **parts}


def model_flops_utilisation(plan: Plan, cluster: Cluster, seconds: float) -> dict[str, float]:
    """MFU of a step by the two definitions of docs/what-does-a-model-cost.md, as shares of the published rate."""
    tokens = plan.batch * plan.context
    needed = 3 * sum(flops.forward(plan.model, plan.batch, plan.context, causal=True).values())
    rate = cluster.peak_flops * plan.layout.world_size * seconds
    return {
        "mfu_causal": needed / rate,
        "mfu_6n_attention": flops.six_n_and_attention(plan.model, tokens, plan.context) / rate,
    }


def _block(plan: Plan, cluster: Cluster) -> tuple[_Work, _Work, _Work, _Work]:
    """A block's forward and backward pass, what is computed again, averaged over blocks, and the head's both passes."""
    model, tp, tokens, size = plan.model, plan.layout.tp, plan.tokens, plan.size
    rate, memory = cluster.product_flops, cluster.memory_bytes_per_second * MEMORY_SHARE
    products = 2 * tokens * (attention_matrices(model) + feed_forward_matrices(model)) / tp / rate
    seen = sum(flops.pairs(plan.context, window, causal=True) for window in model.layer_windows) / model.num_layers
    attention = 4 * model.query_width * plan.micro_batch * seen / tp / cluster.peak_flops
    passes = [
        norm * model.norms * model.d_model
        + turn * (model.query_width + model.kv_width) * (not model.learned_positions)
        + gate * model.d_ff
        for norm, turn, gate in zip(
            NORM_PASSES, ROTATION_PASSES, GATED_PASSES if model.gated else PLAIN_PASSES, strict=True
        )
    ]
    elementwise = [tokens * number * size / tp / memory for number in passes]
    collectives = block_collectives(plan)
    talk = {phase: sum(_times(plan, cluster, collectives, "tp", phase)) for phase in ("forward", "backward")}
    forward = _Work(products, attention / ATTENTION_FORWARD_SHARE, elementwise[0], talk["forward"])
    backward = _Work(
        2 * products,
        BACKWARD_ATTENTION * attention / ATTENTION_BACKWARD_SHARE,
        elementwise[1],
        talk["backward"],
    )
    share = 1 / plan.every if plan.every else 0.0
    again = _Work(*(share * getattr(forward, name) for name in _Work.__slots__))
    logits = tokens * model.vocab_size / tp
    edges = sum(_times(plan, cluster, edge_collectives(plan), "tp"))
    head = _Work(6 * logits * model.d_model / rate, 0.0, LOGIT_PASSES * logits * size / memory, edges)
    return forward, backward, again, head


def _exposed_gathers(plan: Plan, cluster: Cluster, forward: float, backward: float) -> float:
    """What gathering a block's parameters and scattering its gradients takes beyond the compute that hides it."""
    collectives = block_collectives(plan)
    gathers = {phase: sum(_times(plan, cluster, collectives, "fsdp", phase)) for phase in ("forward", "backward")}
    return max(0.0, gathers["forward"] - forward) + max(0.0, gathers["backward"] - backward)


def _times(
    plan: Plan, cluster: Cluster, collectives: list[Collective], axis: str, phase: str | None = None
) -> list[float]:
    """The seconds of the collectives of an axis, and of a phase if one is given."""
    return [
        one.count * cluster.collective_seconds(one.size, one.stride, one.sent, one.hops)
        for one in collectives
        if one.axis == axis and phase in (None, one.phase)
    ]
