"""What a rank of the pipeline has: its layers, whether it is the first or the last, and what it keeps at once.

Without a pipeline a rank has one stage, which is both the first and the last.
"""

from dataclasses import dataclass

from ...distributed.layout import stage_layers
from .plan import Plan
from .tensors import Parameter, block_parameters, first_parameters, last_parameters


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of one rank."""

    plan: Plan
    rank: int

    @property
    def is_first(self) -> bool:
        """Whether it embeds tokens."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether it computes the loss."""
        return self.rank == self.plan.layout.pp - 1

    @property
    def layers(self) -> list[int]:
        """The numbers of its layers."""
        pp, each = self.plan.layout.pp, self.plan.pp_stages
        split = stage_layers(self.plan.model.num_layers, pp * each)
        return [layer for number in range(self.rank, pp * each, pp) for layer in split[number]]

    @property
    def in_flight(self) -> int:
        """Forward passes of a stage whose backward pass is still to come, at most: 1F1B's, or the interleaved one's.

        Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
        """
        pp, each, count = self.plan.layout.pp, self.plan.pp_stages, self.plan.micro_batches
        if each == 1:
            return min(count, pp - self.rank)
        at_once = count // max(1, count // pp)
        return min(count * each, (each - 1) * at_once + 2 * (pp - 1 - self.rank) + 1)

    @property
    def blocks(self) -> tuple[Parameter, ...]:
        """The parameters of its blocks."""
        return block_parameters(self.plan.model, self.plan.layout.tp) * len(self.layers)

    @property
    def edges(self) -> list[Parameter]:
        """The parameters of what stands around the blocks. A tied head is the embedding on the last rank, too."""
        model = self.plan.model
        found = first_parameters(model) if self.is_first else []
        if self.is_last:
            tied = model.tie_embeddings and not self.is_first
            found = [*found, *last_parameters(model), *first_parameters(model)[:tied]]
        return found


def all_stages(plan: Plan) -> list[Stages]:
    """Those of every rank of the pipeline."""
    return [Stages(plan, rank) for rank in range(plan.layout.pp)]
