"""The bytes that the fullest rank needs in a training step: its peak, by what is in memory then.

The peak is in the loss, in the backward pass of a block, in that of the embedding, or in the optimiser's step. Counted
is what distributed/ does with PyTorch's ops, as in memory.py; tests/costs/cluster/test_ranks.py runs it on ranks and
tensors that do not exist, and finds these numbers within 5 %. What an allocator keeps for reuse, the libraries, and the
buffers of collectives come on top.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..activations import FLOAT32, INT64, blocks, chunk_rows, norm_bytes
from ..architecture import Architecture
from ..parameters import attention_matrices, feed_forward_matrices
from .plan import Plan
from .stages import Stages, all_stages
from .tensors import Parameter, block_parameters

Bytes = dict[str, int]
PARTS = ("weights", "optimizer", "gradients", "gathered", "autocast", "activations", "loss")


def rank_bytes(plan: Plan) -> Bytes:
    """The peak of the fullest rank, by part, with its "total"."""
    return max((peak_of(stages) for stages in _differing(plan)), key=lambda parts: parts["total"])


def peak_of(stages: Stages) -> Bytes:
    """The peak of a rank with these stages."""
    found = max(_Rank(stages).moments(), key=lambda parts: sum(parts.values()))
    return {"total": sum(found.values()), **{part: found[part] for part in PARTS}}


def _differing(plan: Plan) -> list[Stages]:
    """The ranks of the pipeline of which one may be the fullest: the last ones keep least, except for the loss."""
    ranks = all_stages(plan)
    most = max(len(one.layers) for one in ranks)
    fullest = next(one for one in ranks if len(one.layers) == most)
    return list({one.rank: one for one in (ranks[0], ranks[min(1, len(ranks) - 1)], fullest, ranks[-1])}.values())


class _Rank:
    """A rank, and its sizes in bytes."""

    def __init__(self, stages: Stages) -> None:
        plan = stages.plan
        model, layout = plan.model, plan.layout
        self.stages, self.plan, self.model, self.layout = stages, plan, model, layout
        self.size, self.tokens, self.num_layers = plan.size, plan.tokens, len(stages.layers)
        self.stream = plan.tokens * model.d_model * FLOAT32
        self.part = self.stream // layout.tp  # of a stream that is split
        self.local = _local(model, layout.tp)
        self.head = -(-model.vocab_size // layout.tp) * model.d_model if stages.is_last else 0  # numbers
        # Whether gradients that are not scattered yet stay from one micro-batch to the next.
        self.accumulates = plan.micro_batches > 1 and (layout.pp > 1 or not plan.is_sharded)
        mine, block = [*stages.blocks, *stages.edges], block_parameters(model, layout.tp)
        self.weights = FLOAT32 * sum(one.sharded(layout) for one in mine)
        once = (
            [one for one in stages.blocks if one.is_matrix] if plan.optimizer == "muon" else []
        )  # one average, not two
        self.optimizer = 2 * self.weights + FLOAT32 * (len(mine) - sum(one.sharded(layout) + 1 for one in once))
        self.sharded_block = FLOAT32 * sum(one.sharded(layout) for one in block)
        self.whole_block, self.whole_edges = self._whole(block), self._whole(stages.edges)
        self.gathered_block = self._gathered(self._in_use(block))
        self.flat_block = self._flat(block)
        kinds = blocks(
            self.local, min(plan.micro_batch, plan.rank_rows), plan.context, dtype=plan.dtype, kernels="pytorch"
        )
        self.inside = [self._inside(kinds[layer]) for layer in stages.layers]
        self.kept = [
            self.part if plan.every and (layer + 1) % plan.every == 0 else inside
            for layer, inside in zip(stages.layers, self.inside, strict=True)
        ]
        self.standing = self._standing()

    def moments(self) -> Iterator[Bytes]:
        """What is in memory at each moment that may be the peak."""
        yield self._in_the_loss() if self.stages.is_last else self._after_the_forward_pass()
        yield from self._in_the_blocks()
        if self.stages.is_first:
            yield self._in_the_embedding()
        yield self._in_the_step()

    def _standing(self) -> Bytes:
        """From step to step: weights, the optimiser's state, tokens, buffers; and what earlier micro-batches left."""
        plan, pp = self.plan, self.layout.pp
        gradients = self.weights if plan.is_replicated else 0  # its buckets
        if self.accumulates:
            gradients += self.whole_edges + self.num_layers * self.whole_block
        elif plan.micro_batches > 1:
            gradients += self.weights
        received = (not self.stages.is_first) + (not self.stages.is_last) if plan.pp_stages == 1 else 0
        if plan.pp_stages > 1:
            received = 2 * plan.pp_stages - self.stages.is_first - self.stages.is_last
        buffers = received * plan.micro_batches * self.part if pp > 1 else 0
        return {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "gradients": gradients,
            "activations": 2 * self.tokens * INT64 + buffers + self._of_others(),
        }

    def _of_others(self) -> int:
        """What other micro-batches keep while one is in all of this rank's stages."""
        if self.layout.pp == 1:
            return 0
        each = self.plan.pp_stages
        stage = sum(self.kept) // each + self.part * (self.stages.is_first - self.stages.is_last) // each
        return max(0, self.stages.in_flight - each) * stage

    def _in_the_loss(self) -> Bytes:
        """At the last chunk of logits, when everything that the blocks save is still in memory."""
        plan, model, size, tp = self.plan, self.model, self.size, self.layout.tp
        vocabulary = -(-model.vocab_size // tp)
        rows = min(self.tokens, chunk_rows(vocabulary))
        logits, narrow = rows * vocabulary, size if plan.dtype == "bfloat16" else 0
        row = size + FLOAT32 + (FLOAT32 if narrow else 0)
        if tp > 1:
            at_once = max(logits * (narrow + 2 * FLOAT32), logits * (size + narrow + FLOAT32) + self.head * size)
        else:
            before = min(rows, self.tokens - rows)
            at_once = max(row * logits, (row * before + size * rows) * vocabulary, (logits + self.head) * size)
        copies = narrow * (self.tokens * model.d_model + self.head)
        loss = 2 * self.stream + self.head * FLOAT32 + self.tokens * INT64
        return self._with(
            activations=sum(self.kept) + self.stream + norm_bytes(model, self.tokens, "pytorch") + self._positions(),
            gathered=self._gathered(self.whole_edges) + (0 if self.plan.gathers_norms_apart else self.flat_block),
            autocast=self._autocast(),
            loss=loss + max(at_once + copies, self.head * FLOAT32),
        )

    def _after_the_forward_pass(self) -> Bytes:
        """When a stage that is not the last has its output."""
        return self._with(
            activations=sum(self.kept) + self.stream,
            autocast=self._autocast(),
            gathered=self._gathered(self.whole_edges),
        )

    def _autocast(self) -> int:
        """Weights of blocks that run again, which autocast keeps in its dtype to the end of the forward pass.

        It keeps none of FSDP2's, which are gathered in that dtype, nor of tensor parallelism's, which are parts of a
        parameter.
        """
        plan = self.plan
        if not plan.every or plan.dtype != "bfloat16" or self.layout.tp > 1 or plan.is_sharded:
            return 0
        again = sum(1 for layer in self.stages.layers if (layer + 1) % plan.every == 0)
        return again * self.size * (attention_matrices(self.model) + feed_forward_matrices(self.model))

    def _in_the_blocks(self) -> Iterator[Bytes]:
        """In the backward pass of each block, at the end of its feed-forward."""
        # The first gradient that is made, unless it is added to one that is there already.
        size = self.plan.gathered_size if self.plan.is_sharded else FLOAT32
        down = 0 if self.accumulates else size * self.model.d_model * self.local.d_ff
        on_the_way = self.stream + 2 * self.tokens * self.local.d_ff * self.size
        gradients = 0 if self.accumulates else self.head * FLOAT32
        held = sum(self.kept)
        for done in range(self.num_layers):
            layer = self.num_layers - 1 - done
            held -= self.kept[layer]
            scattered = self._gathered(self.whole_block) * (done > 0 and not self.accumulates)  # still on their way
            together = 1 if self.layout.pp == 1 else done + 1  # a pipeline keeps blocks gathered for the next pass
            yield self._with(
                activations=held + self.inside[layer] + on_the_way,
                gradients=gradients + down + scattered,
                gathered=self._gathered(self.whole_edges) + together * self.gathered_block + self.flat_block,
            )
            gradients += self.sharded_block if self.plan.micro_batches == 1 else 0

    def _in_the_embedding(self) -> Bytes:
        """At the end of the backward pass, when the embedding's gradient is made, and added to a tied head's."""
        embedding = FLOAT32 * -(-self.model.vocab_size // self.layout.tp) * self.model.d_model
        gradients = embedding
        if not self.accumulates:
            tied = 2 * FLOAT32 * self.head * self.model.tie_embeddings
            gradients = self.whole_edges + tied
        if self.plan.micro_batches == 1:
            gradients += self.num_layers * self.sharded_block
        gathered = self._gathered(self.whole_edges) + self.gathered_block
        return self._with(activations=self.stream, gradients=gradients, gathered=gathered)

    def _in_the_step(self) -> Bytes:
        """In the optimiser's step."""
        gradients = self.weights * (2 if self.plan.is_replicated else 1)
        return {**dict.fromkeys(PARTS, 0), **self.standing, "gradients": gradients}

    def _with(self, **more: int) -> Bytes:
        return {name: self.standing.get(name, 0) + more.get(name, 0) for name in PARTS}

    def _inside(self, parts: Bytes) -> int:
        """What a block saves: of what is a part of the sequence, this rank's.

        Whole weights that FSDP2 has gathered in the dtype of products are not copied into it.
        """
        tp, norms = self.layout.tp, self.model.norms * norm_bytes(self.model, self.tokens, "pytorch")
        split = parts["residual"] + norms + parts["dropout"]
        copies = parts["weight_copies"] if tp == 1 and self.plan.is_sharded and self.plan.gathers_norms_apart else 0
        return sum(parts.values()) - copies - split + split // tp

    def _positions(self) -> int:
        """Cosines and sines, which all blocks share."""
        if self.model.learned_positions:
            return self.plan.context * INT64
        return 2 * self.plan.context * (self.model.rotated_features // 2) * FLOAT32

    def _whole(self, parameters: Sequence[Parameter]) -> int:
        return FLOAT32 * sum(one.held(self.layout.tp) for one in parameters)

    def _in_use(self, block: Sequence[Parameter]) -> int:
        """The parameters of a block as FSDP2 gathers them."""
        size = self.plan.gathered_size
        return sum(one.held(self.layout.tp) * (FLOAT32 if one.is_norm else size) for one in block)

    def _gathered(self, size: int) -> int:
        """What FSDP2 makes for use, of this size, where it runs: without a second data axis it is a copy."""
        return size if self.plan.is_sharded else 0

    def _flat(self, parameters: Sequence[Parameter]) -> int:
        """The buffer that shards are gathered in, which stays until the next one; a pipeline gathers less often.

        The next one may be a norm's, which hardly counts.
        """
        if self.layout.fsdp == 1 or self.layout.pp > 1:
            return 0
        return self.plan.gathered_size * sum(one.gathered(self.layout) for one in parameters)


def _local(model: Architecture, tp: int) -> Architecture:
    """The heads and features of a tensor-parallel rank."""
    return replace(
        model, num_heads=model.num_heads // tp, num_kv_heads=max(1, model.num_kv_heads // tp), d_ff=model.d_ff // tp
    )
