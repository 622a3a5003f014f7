"""The collectives of a training step, exactly: how many, of how many bytes, between which devices.

What distributed/ does, counted: tests/costs/cluster/test_collectives.py runs it on 256 ranks that do not exist, and
finds these numbers. Left out are a few scalars a step: the counts of targets, and the terms of the gradient's norm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..activations import FLOAT32, chunk_rows
from .plan import Plan
from .stages import Stages
from .tensors import Parameter, block_norms, block_parameters, first_parameters, last_parameters

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "send"]
Phase = Literal["forward", "backward", "step"]
Axis = Literal["tp", "fsdp", "dp", "pp"]

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # DistributedDataParallel's limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """`count` collectives of one kind between the `size` devices of an axis, which are `stride` ranks apart."""

    axis: Axis
    phase: Phase
    """In the forward or the backward pass of each micro-batch, or once a step, in its last backward pass."""

    kind: Kind
    count: int
    bytes: int
    """Of the whole tensor that is gathered, scattered, reduced or sent."""

    size: int
    stride: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends for one of them, in a ring."""
        share = (self.size - 1) / self.size
        return self.bytes * {"all_reduce": 2 * share, "send": 1.0}.get(self.kind, share)

    @property
    def hops(self) -> int:
        """Messages one after the other, in a ring."""
        return {"all_reduce": 2 * (self.size - 1), "send": 1}.get(self.kind, self.size - 1)


def block_collectives(plan: Plan) -> list[Collective]:
    """Those of one block, when it is not checkpointed; a checkpointed one adds `collectives_again`."""
    layout, parameters = plan.layout, block_parameters(plan.model, plan.layout.tp)
    found = list(_of_the_sequence(plan))
    if layout.tp > 1:  # what is whole on all ranks is used by each for a term
        whole = [one.rows * one.columns * FLOAT32 for one in parameters if one.split == "none"]
        found += [_over("tp", plan, "backward", "all_reduce", 1, size) for size in whole]
    twice: tuple[Phase, ...] = ("forward", "backward")
    if not plan.gathers_norms_apart:
        return [*found, *_of_parameters(plan, parameters, gathers=twice, size=plan.wide)]
    found += _of_parameters(plan, [one for one in parameters if not one.is_norm], gathers=twice, size=plan.size)
    for norm in block_norms(plan.model):  # which stays gathered until the backward pass
        found += _of_parameters(plan, norm, gathers=("forward",), size=plan.wide, in_pipeline=1)
    return found


def edge_collectives(stages: Stages) -> list[Collective]:
    """Those of what stands around the blocks on a rank: the embedding on the first, norm, head and loss on the last."""
    plan, model = stages.plan, stages.plan.model
    stream = plan.tokens * model.d_model * plan.wide
    found = []
    if plan.layout.tp > 1 and stages.is_first:
        kind: Kind = "all_reduce" if model.learned_positions else "reduce_scatter"  # these are added to what is whole
        found.append(_over("tp", plan, "forward", kind, 1, stream))
        found += [_over("tp", plan, "backward", "all_gather", 1, stream)] * (not model.learned_positions)
    if plan.layout.tp > 1 and stages.is_last:
        rows = chunk_rows(-(-model.vocab_size // plan.layout.tp))
        chunks, left = divmod(plan.tokens, rows)
        found += [
            _over("tp", plan, "forward", "all_gather", 1, stream),  # the sequence, before the last norm
            *(_over("tp", plan, "forward", "all_reduce", chunks, k * rows * FLOAT32) for k in (1, 2) if chunks),
            *(_over("tp", plan, "forward", "all_reduce", 1, k * left * FLOAT32) for k in (1, 2) if left),
            _over("tp", plan, "backward", "all_reduce", 1, stream),  # each rank has a term of the gradient
        ]
    return [*found, *_of_parameters(plan, stages.edges, gathers=("forward",), size=plan.wide)]


def pipeline_collectives(stages: Stages) -> list[Collective]:
    """What a rank sends in a micro-batch: to the next stages, and back to those before."""
    plan = stages.plan
    if plan.layout.pp == 1:
        return []
    stream = plan.tokens * plan.model.d_model * plan.wide // plan.layout.tp
    ahead, back = plan.pp_stages - stages.is_last, plan.pp_stages - stages.is_first
    counts: list[tuple[Phase, int]] = [("forward", ahead), ("backward", back)]
    found = [_over("pp", plan, phase, "send", count, stream) for phase, count in counts if count]
    if plan.model.tie_embeddings and (stages.is_first or stages.is_last):  # both have a gradient of the same weight
        found.append(
            _over("pp", plan, "step", "send", 1, FLOAT32 * first_parameters(plan.model)[0].sharded(plan.layout))
        )
    return found


def replica_collectives(plan: Plan) -> list[Collective]:
    """Those of whole copies (DistributedDataParallel): gradients in buckets, in the order in which they come up.

    A bucket is full when it has reached its limit; the first one, which nothing overlaps yet, is smaller.
    """
    if not plan.is_replicated:
        return []
    model, last = plan.model, last_parameters(plan.model)
    backwards = [*reversed(block_parameters(model, 1))] * model.num_layers
    buckets, limits = [0], [FIRST_BUCKET]
    for one in (*reversed(last), *backwards, *reversed(first_parameters(model))):
        if buckets[-1] >= limits[-1]:
            buckets.append(0)
            limits.append(BUCKET)
        buckets[-1] += one.rows * one.columns * FLOAT32
    return [_over("dp", plan, "step", "all_reduce", 1, size) for size in buckets]


def collectives_of_a_step(stages: Stages) -> list[Collective]:
    """All that a rank takes part in, in a step."""
    plan, layers = stages.plan, len(stages.layers)
    per_block = [replace(one, count=one.count * layers) for one in block_collectives(plan)]
    checkpointed = sum(1 for layer in stages.layers if plan.every and (layer + 1) % plan.every == 0)
    per_block += [replace(one, count=one.count * checkpointed) for one in collectives_again(plan)]
    return [
        replace(one, count=one.count * (1 if one.phase == "step" else plan.micro_batches))
        for one in (
            *per_block,
            *edge_collectives(stages),
            *pipeline_collectives(stages),
            *replica_collectives(plan),
        )
        if one.count
    ]


def collectives_again(plan: Plan) -> list[Collective]:
    """What a checkpointed block adds to its backward pass: it runs again, up to its last product."""
    ends_early = not (plan.model.dropout or plan.model.post_norm)
    return [
        replace(one, phase="backward", count=one.count - (ends_early and one.kind == "reduce_scatter"))
        for one in _of_the_sequence(plan)
        if one.phase == "forward"
    ]


def _of_the_sequence(plan: Plan) -> Iterator[Collective]:
    """Tensor parallelism: the sequence is gathered before attention and feed-forward, and scattered after them."""
    if plan.layout.tp == 1:
        return
    numbers = plan.tokens * plan.model.d_model
    wide, narrow = numbers * plan.wide, numbers * plan.size  # norms give float32; a product's output has its dtype
    yield _over("tp", plan, "forward", "all_gather", 2, wide)
    yield _over("tp", plan, "forward", "reduce_scatter", 2, narrow)
    yield _over("tp", plan, "backward", "all_gather", 2, narrow)
    yield _over("tp", plan, "backward", "reduce_scatter", 2, wide)


def _of_parameters(
    plan: Plan, parameters: Sequence[Parameter], *, gathers: tuple[Phase, ...], size: int, in_pipeline: int = 0
) -> Iterator[Collective]:
    """Data parallelism: shards are gathered before use, as numbers of `size` bytes, and gradients are scattered.

    In a pipeline gradients are scattered once a step. Those of copies are averaged once a step.
    in_pipeline: how often shards are gathered in a step there. Default: kept from a backward to the next forward pass,
    which then does without.
    """
    layout = plan.layout
    if layout.fsdp > 1 and parameters:
        gathered = sum(one.gathered(layout) for one in parameters)
        if layout.pp == 1:
            for phase in gathers:
                yield _over("fsdp", plan, phase, "all_gather", 1, gathered * size)
        else:
            times = in_pipeline or plan.micro_batches + 1
            yield _over("fsdp", plan, "step", "all_gather", times, gathered * size)
        scattered: Phase = "backward" if layout.pp == 1 else "step"
        yield _over("fsdp", plan, scattered, "reduce_scatter", 1, gathered * FLOAT32)
    if layout.dp > 1 and parameters and not plan.is_replicated:
        mine = sum(one.sharded(layout) for one in parameters)
        yield _over("dp", plan, "step", "all_reduce", 1, mine * FLOAT32)


def _over(axis: Axis, plan: Plan, phase: Phase, kind: Kind, count: int, size: int) -> Collective:
    layout = plan.layout
    strides = {"tp": 1, "fsdp": layout.tp, "dp": layout.tp * layout.fsdp, "pp": layout.tp * layout.fsdp * layout.dp}
    devices = getattr(layout, axis)
    return Collective(axis=axis, phase=phase, kind=kind, count=count, bytes=size, size=devices, stride=strides[axis])
