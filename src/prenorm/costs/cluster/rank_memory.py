"""The bytes that the fullest rank needs in a training step: its peak, by what is in memory then.

The peak is in the loss, in the backward pass of a block, in that of the embedding, or in the optimiser's step. Counted
is what distributed/ does with PyTorch's ops, as in memory.py; tests/costs/cluster/test_rank_memory.py runs it on ranks
and tensors that do not exist, and finds these numbers within 5 %. What an allocator keeps for reuse, the libraries, and
the buffers of collectives come on top.
"""

from collections.abc import Iterator
from dataclasses import replace

from ..activations import FLOAT32, INT64, blocks, norm_bytes
from ..architecture import Architecture
from ..memory import CHUNK_ELEMENTS
from ..parameters import attention_matrices, feed_forward_matrices
from .plan import Plan
from .tensors import Parameter, block_parameters, first_parameters, last_parameters

Bytes = dict[str, int]
PARTS = ("weights", "optimizer", "gradients", "gathered", "activations", "loss")


def rank_bytes(plan: Plan) -> Bytes:
    """The peak of the fullest rank, by part, with its "total"."""
    found = max(_peaks(plan), key=lambda parts: sum(parts.values()))
    return {"total": sum(found.values()), **{part: found.get(part, 0) for part in PARTS}}


def _peaks(plan: Plan) -> Iterator[Bytes]:
    """What is in memory at each moment that may be the peak."""
    rank = _Rank(plan)
    yield rank.in_the_loss()
    yield from rank.in_the_blocks()
    yield rank.in_the_embedding()
    yield rank.in_the_step()


class _Rank:
    """A rank of a plan without a pipeline, and its sizes in bytes."""

    def __init__(self, plan: Plan) -> None:
        model, layout = plan.model, plan.layout
        self.plan, self.model, self.layout, self.size = plan, model, layout, plan.size
        self.tokens = plan.tokens
        self.stream = plan.tokens * model.d_model * FLOAT32
        self.local = _local(model, layout.tp)
        self.block = block_parameters(model, layout.tp)
        self.edges = [*first_parameters(model), *last_parameters(model)]
        self.head = -(-model.vocab_size // layout.tp) * model.d_model  # numbers
        everything = [*self.block * model.num_layers, *self.edges]
        self.weights = FLOAT32 * sum(one.sharded(layout) for one in everything)
        self.optimizer = 2 * self.weights + FLOAT32 * len(everything)
        self.sharded_block = FLOAT32 * sum(one.sharded(layout) for one in self.block)
        self.sharded_edges = FLOAT32 * sum(one.sharded(layout) for one in self.edges)
        self.whole_block, self.flat_block = self._whole(self.block), self._flat(self.block)
        self.whole_edges, self.flat_edges = self._whole(self.edges), self._flat(self.edges)
        self.inside = [self._inside(parts) for parts in blocks(
            self.local, plan.micro_batch, plan.context, dtype=plan.dtype, kernels="pytorch")]

    def standing(self) -> Bytes:
        """From step to step: weights, the optimiser's state, tokens and targets; what earlier micro-batches left."""
        buckets = self.weights if self.plan.is_replicated else 0
        gradients = buckets + (self._left() if self.plan.micro_batches > 1 else 0)
        return {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "gradients": gradients,
            "activations": 2 * self.tokens * INT64,
        }

    def _left(self) -> int:
        """Gradients of earlier micro-batches, which are whole until they are scattered at the end of a step."""
        return self.whole_edges + self.model.num_layers * self.whole_block

    def in_the_loss(self) -> Bytes:
        """At the last chunk of logits, when everything that the blocks save is still in memory."""
        plan, model, size = self.plan, self.model, self.size
        kept = sum(self._kept(layer) for layer in range(model.num_layers))
        kept += self.stream + norm_bytes(model, self.tokens, "pytorch") + self._positions()
        rows = min(self.tokens, max(1, CHUNK_ELEMENTS // -(-model.vocab_size // self.layout.tp)))
        logits = rows * -(-model.vocab_size // self.layout.tp)
        narrow = size if plan.dtype == "bfloat16" else 0
        if self.layout.tp > 1:
            at_once = max(logits * (narrow + 2 * FLOAT32), logits * (size + narrow + FLOAT32) + self.head * size)
        else:
            more = min(rows, self.tokens - rows)
            chunk = logits // rows
            row = size + FLOAT32 + (FLOAT32 if narrow else 0)
            at_once = max(row * logits, (row * more + size * rows) * chunk, (logits + self.head) * size)
        copies = narrow * (self.tokens * model.d_model + self.head)
        if plan.every and narrow and self.layout.tp == 1:  # what autocast keeps of blocks that run again
            copies += narrow * (model.num_layers // plan.every) * (attention_matrices(self.local) + feed_forward_matrices(self.local))
        loss = 2 * self.stream + self.head * FLOAT32 + self.tokens * INT64
        return self._with(
            self.standing(),
            activations=kept,
            gathered=self._gathered(self.whole_edges) + self.flat_block,
            loss=loss + max(at_once + copies, self.head * FLOAT32),
        )

    def in_the_blocks(self) -> Iterator[Bytes]:
        """In the backward pass of each block, at the end of its feed-forward."""
        plan, model, size = self.plan, self.model, self.size
        down, accumulates = FLOAT32 * model.d_model * self.local.d_ff, plan.micro_batches > 1
        held = [self._kept(layer) for layer in range(model.num_layers)]
        gradients = 0 if accumulates else self.head * FLOAT32
        for done, layer in enumerate(reversed(range(model.num_layers))):
            on_the_way = self.stream + 2 * self.tokens * self.local.d_ff * size
            scattered = self._gathered(self.whole_block) * (done > 0)  # the block before is still on its way
            yield self._with(
                self.standing(),
                activations=sum(held[:layer]) + self.inside[layer] + on_the_way,
                gradients=gradients + down + scattered,
                gathered=self._gathered(self.whole_edges + self.whole_block) + self.flat_block,
            )
            gradients += 0 if accumulates else self.sharded_block

    def in_the_embedding(self) -> Bytes:
        """At the end of the backward pass, when the embedding's gradient is made, and added to a tied head's."""
        gradients = self.whole_edges + 2 * FLOAT32 * self.head * self.model.tie_embeddings
        if self.plan.micro_batches > 1:
            gradients = FLOAT32 * self.head
        return self._with(
            self.standing(),
            activations=self.stream,
            gradients=gradients + self.model.num_layers * self.sharded_block,
            gathered=self._gathered(self.whole_edges + self.whole_block),
        )

    def in_the_step(self) -> Bytes:
        """In the optimiser's step."""
        gradients = self.weights * (2 if self.plan.is_replicated else 1)
        return self._with({**self.standing(), "gradients": gradients})

    def _kept(self, layer: int) -> int:
        every = self.plan.every
        if every and (layer + 1) % every == 0:
            return self.stream // self.layout.tp
        return self.inside[layer]

    def _inside(self, parts: Bytes) -> int:
        """What a block saves: of what is a part of the sequence, this rank's."""
        tp, norms = self.layout.tp, self.model.norms * norm_bytes(self.model, self.tokens, "pytorch")
        split = parts["residual"] + norms + parts["dropout"]
        return sum(parts.values()) - split + split // tp

    def _positions(self) -> int:
        return 2 * self.plan.context * (self.model.rotated_features // 2) * FLOAT32

    def _whole(self, parameters: list[Parameter]) -> int:
        return FLOAT32 * sum(one.held(self.layout.tp) for one in parameters)

    def _gathered(self, size: int) -> int:
        """What FSDP2 makes for use, of this size, where it runs: without a second data axis it is a copy."""
        return size if self.layout.data_ranks > 1 and not self.plan.is_replicated else 0

    def _flat(self, parameters: list[Parameter]) -> int:
        """The buffer that shards are gathered in, which stays until the next one."""
        if self.layout.fsdp == 1:
            return 0
        return self.plan.gathered_size * sum(one.gathered(self.layout) for one in parameters)

    @staticmethod
    def _with(parts: Bytes, **more: int) -> Bytes:
        return {name: parts.get(name, 0) + more.get(name, 0) for name in PARTS}


def _local(model: Architecture, tp: int) -> Architecture:
    """The heads and features of a tensor-parallel rank."""
    return replace(
        model, num_heads=model.num_heads // tp, num_kv_heads=max(1, model.num_kv_heads // tp), d_ff=model.d_ff // tp
    )
