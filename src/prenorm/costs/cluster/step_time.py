"""The seconds of a training step on a cluster, from the rates of its devices and links.

Counted are matrix products, attention, the passes over memory of everything else, recomputation, the collectives that
nothing hides, the pipeline's bubble and the optimiser. Products and attention are those of the largest shapes. Not
counted: what smaller matrices reach less, launches, imbalance between devices, input, and logging.
"""

import math
from dataclasses import dataclass

from .. import flops
from ..activations import FLOAT32
from ..parameters import attention_matrices, feed_forward_matrices
from .collectives import (
    Collective,
    block_collectives,
    collectives_again,
    edge_collectives,
    pipeline_collectives,
    replica_collectives,
)
from .hardware import ATTENTION_BACKWARD_SHARE, ATTENTION_FORWARD_SHARE, MEMORY_SHARE, Cluster
from .plan import Plan
from .stages import Stages, all_stages

Seconds = dict[str, float]

# Passes over memory, forward and backward, of all that is neither a product nor attention: a number read or written.
NORM_PASSES = (5, 6)  # the norm, and adding a branch to the stream; the norm's, and adding up the stream's gradient
ROTATION_PASSES = (2, 2)
GATED_PASSES, PLAIN_PASSES = (3, 5), (2, 3)
LOGIT_PASSES = 5  # written, read by the softmax, the gradient written, and read by two products
BACKWARD_ATTENTION = 2.5  # products of its backward pass to those of its forward pass: the scores are computed again
ADAMW_BYTES = 32  # weight, gradient and two averages read, weight and averages written, gradients read for their norm


@dataclass(frozen=True, slots=True)
class _Work:
    """Seconds of one pass over a micro-batch."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor_parallel: float = 0.0

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elementwise + self.tensor_parallel


def step_seconds(plan: Plan, cluster: Cluster) -> Seconds:
    """The seconds of a step, by what the slowest rank spends them on, with their "total"."""
    ranks = all_stages(plan)
    fullest = max(ranks, key=lambda one: len(one.layers))
    found = (_of_rank(one, cluster) for one in {one.rank: one for one in (fullest, ranks[0], ranks[-1])}.values())
    return max(found, key=lambda seconds: seconds["total"])


def model_flops_utilisation(plan: Plan, cluster: Cluster, seconds: float) -> dict[str, float]:
    """MFU of a step by the two definitions of docs/what-does-a-model-cost.md, as shares of the published rate."""
    tokens = plan.batch * plan.context
    needed = 3 * sum(flops.forward(plan.model, plan.batch, plan.context, causal=True).values())
    rate = cluster.peak_flops * plan.layout.world_size * seconds
    return {
        "mfu_causal": needed / rate,
        "mfu_6n_attention": flops.six_n_and_attention(plan.model, tokens, plan.context) / rate,
    }


def _of_rank(stages: Stages, cluster: Cluster) -> Seconds:
    plan, layers = stages.plan, len(stages.layers)
    forward, backward, again = _block(plan, cluster)
    edges = _edges(stages, cluster)
    micro_batch: Seconds = {
        "products": layers * (forward.products + backward.products) + edges.products,
        "attention": layers * (forward.attention + backward.attention),
        "elementwise": layers * (forward.elementwise + backward.elementwise) + edges.elementwise,
        "recomputation": layers * again.total,
        "tensor_parallel": layers * (forward.tensor_parallel + backward.tensor_parallel) + edges.tensor_parallel,
    }
    whole = sum(micro_batch.values())
    parts = {name: seconds * plan.micro_batches for name, seconds in micro_batch.items()}
    parts["bubble"] = whole * (plan.layout.pp - 1) / plan.pp_stages
    sends = _seconds(cluster, pipeline_collectives(stages), "pp") / plan.pp_stages
    parts["pipeline_sends"] = (plan.layout.pp - 1) * sends  # while the pipeline fills and empties; others are hidden
    parts["sharding"] = _exposed(stages, cluster, forward.total, backward.total + again.total)
    written = ADAMW_BYTES / FLOAT32 * _sharded(stages)
    parts["optimizer"] = written / (cluster.memory_bytes_per_second * MEMORY_SHARE)
    return {"total": sum(parts.values()), **parts}


def _block(plan: Plan, cluster: Cluster) -> tuple[_Work, _Work, _Work]:
    """A block's forward pass, its backward pass, and what is computed again, averaged over blocks."""
    model, tp, tokens, size = plan.model, plan.layout.tp, plan.tokens, plan.size
    products = 2 * tokens * (attention_matrices(model) + feed_forward_matrices(model)) / tp / cluster.product_flops
    seen = sum(flops.pairs(plan.context, window, causal=True) for window in model.layer_windows) / model.num_layers
    attention = 4 * model.query_width * (tokens / plan.context) * seen / tp / cluster.peak_flops
    gates = GATED_PASSES if model.gated else PLAIN_PASSES
    turned = 0 if model.learned_positions else model.query_width + model.kv_width
    elementwise = [
        (norm * model.norms * model.d_model + turn * turned + gate * model.d_ff)
        * (tokens * size / tp / (cluster.memory_bytes_per_second * MEMORY_SHARE))
        for norm, turn, gate in zip(NORM_PASSES, ROTATION_PASSES, gates, strict=True)
    ]
    collectives = block_collectives(plan)
    forward = _Work(
        products,
        attention / ATTENTION_FORWARD_SHARE,
        elementwise[0],
        _seconds(cluster, collectives, "tp", "forward"),
    )
    backward = _Work(
        2 * products,
        BACKWARD_ATTENTION * attention / ATTENTION_BACKWARD_SHARE,
        elementwise[1],
        _seconds(cluster, collectives, "tp", "backward"),
    )
    if not plan.every:
        return forward, backward, _Work()
    last = 0 if model.dropout or model.post_norm else 2 * tokens * model.d_model * model.d_ff / tp
    again = (
        products - last / cluster.product_flops,
        forward.attention,
        forward.elementwise,
        _seconds(cluster, collectives_again(plan), "tp"),
    )
    return forward, backward, _Work(*(seconds / plan.every for seconds in again))


def _edges(stages: Stages, cluster: Cluster) -> _Work:
    """Both passes of what stands around the blocks: on the last rank the head, with its softmax."""
    plan = stages.plan
    logits = plan.tokens * plan.model.vocab_size / plan.layout.tp * stages.is_last
    memory = cluster.memory_bytes_per_second * MEMORY_SHARE
    return _Work(
        products=6 * logits * plan.model.d_model / cluster.product_flops,
        elementwise=LOGIT_PASSES * logits * plan.size / memory,
        tensor_parallel=_seconds(cluster, edge_collectives(stages), "tp"),
    )


def _exposed(stages: Stages, cluster: Cluster, forward: float, backward: float) -> float:
    """What gathering parameters and reducing gradients takes in a step, beyond the compute that hides it.

    A block's parameters are gathered while the block before it runs, its gradients scattered while the next one does;
    those of what stands around the blocks, the first and the last of them, nothing hides.
    """
    plan, layers = stages.plan, len(stages.layers)
    block, edges = block_collectives(plan), edge_collectives(stages)
    in_forward = _seconds(cluster, block, "fsdp", "forward")
    in_backward = _seconds(cluster, block, "fsdp", "backward")
    once = _seconds(cluster, block, "fsdp", "step") + _seconds(cluster, block, "dp", "step")
    if plan.layout.pp > 1:  # gathers and reductions both are counted by the step, and hidden by all of its passes
        hidden = (forward + backward) * plan.micro_batches
        exposed = layers * max(0.0, once - hidden)
    else:
        passes = max(0.0, in_forward - forward) + (plan.micro_batches - 1) * (
            max(0.0, in_forward - forward) + max(0.0, in_backward - backward)
        )
        exposed = layers * (passes + max(0.0, in_backward + once - backward))
    around = sum(
        _seconds(cluster, edges, axis, phase) * (1 if phase == "step" else plan.micro_batches)
        for axis in ("fsdp", "dp")
        for phase in ("forward", "backward", "step")
    )
    copies = _seconds(cluster, replica_collectives(plan), "dp")
    return exposed + around + max(0.0, copies - layers * backward)


def _sharded(stages: Stages) -> int:
    """Bytes of a rank's weights."""
    return FLOAT32 * sum(one.sharded(stages.plan.layout) for one in (*stages.blocks, *stages.edges))


def _seconds(cluster: Cluster, collectives: list[Collective], axis: str, phase: str | None = None) -> float:
    """What the collectives of an axis take, and of a phase if one is given."""
    return math.fsum(
        one.count * cluster.collective_seconds(one.size, one.stride, one.sent, one.hops)
        for one in collectives
        if one.axis == axis and phase in (None, one.phase)
    )
