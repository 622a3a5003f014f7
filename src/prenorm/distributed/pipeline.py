"""The pipeline: a step's micro-batches through the stages of a model, forward and backward, on PyTorch's schedules."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from ..errors import ConfigError, PrenormError
from ..kernels.dropout_masks import DropoutKey, dropout_key
from ..layers.sharded import local_part
from ..models.lm import TransformerLM
from .parallelize import parallelize
from .stages import Received, split_into_stages


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go through the stages together, and the weight of their mean loss in that of the step."""

    token_ids: Tensor
    targets: Tensor
    segment_ids: Tensor | None
    share: float
    dropout: DropoutKey | None = None


class Pipeline:
    """The stages of a model that this process has, and the schedules that run them.

    Afterwards `model` has the parts of these stages alone, spread over the other dims of the mesh (see `parallelize`,
    which takes the options): its parameters and its state dict are this process's share of the model's. One stage a
    process runs 1F1B, several run interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473). All processes of a
    pipeline have the same micro-batches; activations and their gradients go from stage to stage.
    autocast: makes the context that stages compute in. use_checkpointing: as in `TransformerLM.loss`. device: where
    they compute, for a model that has no data yet (meta); otherwise it is the model's.
    Raises ConfigError for fewer layers than stages, and what `parallelize` raises.
    """

    def __init__(
        self,
        model: TransformerLM,
        mesh: DeviceMesh,
        *,
        stages_per_rank: int = 1,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        use_checkpointing: bool | int = False,
        device: torch.device | None = None,
        **options: Any,
    ) -> None:
        names = mesh.mesh_dim_names or ()
        if "pp" not in names:
            raise ConfigError(
                f'a pipeline needs a mesh with a dim "pp", but this one has {list(names)}; '
                "prenorm.distributed.mesh.make_mesh(Layout(pp=2)) makes one."
            )
        self.mesh, self._group, self._device = mesh, mesh.get_group("pp"), device or model.device
        self._rank, self._ranks = mesh.get_local_rank("pp"), mesh["pp"].size()
        self._num_stages = self._ranks * stages_per_rank
        parts = split_into_stages(model, self._ranks, self._rank, stages_per_rank)
        numbers = range(self._rank, self._num_stages, self._ranks)
        self._stages = [
            _Stage(parallelize(part, mesh, **options), number, self._num_stages, autocast, use_checkpointing)
            for part, number in zip(parts, numbers, strict=True)
        ]
        for stage in self._stages:
            if isinstance(stage.model, FSDPModule):  # the schedules ask the stage, and reduce gradients once a step
                register_fsdp_forward_method(stage.model, "loss" if stage.is_last else "hidden")
                copies = "dp" in names and mesh["dp"].size() > 1
                fully_shard(stage, mesh=mesh["dp", "fsdp"] if copies else mesh["fsdp"])
        self._schedules: dict[tuple[object, ...], Any] = {}  # receiving buffers have a shape

    def add_up_gradients(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Add the gradients of the step's loss to the parameters', and give that loss, the same on every process.

        Raises ConfigError where the schedule cannot run so many micro-batches, or they have several shapes.
        """
        losses: list[Tensor] = []
        self._run(micro_batches, losses, training=True)
        self._share_tied_gradient()
        return self._sum(losses)

    @torch.no_grad()
    def loss(self, micro_batches: Sequence[MicroBatch]) -> float:
        """The loss alone, the same on every process."""
        losses: list[Tensor] = []
        self._run(micro_batches, losses, training=False)
        return self._sum(losses)

    @property
    def tied_weight(self) -> nn.Parameter | None:
        """This process's copy of the weight that the first and the last stage share, if it has one."""
        ends = [stage.model for stage in self._stages if stage.is_first or stage.is_last]
        return ends[0].embedding.weight if ends and ends[0].config.tie_embeddings else None

    def _run(self, micro_batches: Sequence[MicroBatch], losses: list[Tensor], *, training: bool) -> None:
        _check_shapes(micro_batches)
        for stage in self._stages:
            stage.micro_batches = micro_batches
        numbers = torch.arange(len(micro_batches))
        first = [torch.cat([one.token_ids for one in micro_batches])] if self._rank == 0 else []
        schedule = self._schedule(len(micro_batches), micro_batches[0].token_ids.shape, training=training)
        run = schedule.step if training else schedule.eval
        try:
            run(*first, number=numbers, target=numbers, losses=losses, return_outputs=False)
        except RuntimeError as error:  # a schedule puts one of its own around what a stage raises
            if isinstance(error.__cause__, PrenormError):
                raise error.__cause__ from None
            raise

    def _schedule(self, count: int, shape: torch.Size, *, training: bool) -> Any:
        if (known := self._schedules.get((count, shape, training))) is not None:
            return known
        stages = [
            PipelineStage(
                stage,
                stage.number,
                self._num_stages,
                self._device,
                group=self._group,
                get_mesh=self._mesh_of_a_sequence,
            )
            for stage in self._stages
        ]
        options: dict[str, Any] = {"loss_fn": lambda loss, _: loss, "scale_grads": False}
        schedule: Any
        if len(stages) > 1:
            _check_interleaved(count, self._ranks)
            schedule = ScheduleInterleaved1F1B(list(stages), count, **options)
        elif training and count >= self._ranks:
            schedule = Schedule1F1B(stages[0], count, **options)
        else:
            schedule = ScheduleGPipe(stages[0], count, **options)
        self._schedules[count, shape, training] = schedule
        return schedule

    def _mesh_of_a_sequence(self, mesh_dim_names: tuple[str, ...], mesh_layout: object) -> DeviceMesh:
        """The mesh over which a sequence between two stages may be split."""
        return self.mesh["tp"]

    def _share_tied_gradient(self) -> None:
        """Give the embedding on the first stage and the tied head on the last one the sum of both gradients."""
        weight = self.tied_weight
        if weight is None or weight.grad is None or self._ranks == 1:
            return
        own = local_part(weight.grad)
        other, peer = torch.empty_like(own), dist.get_global_rank(self._group, self._ranks - 1 - self._rank)
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, own, peer, self._group), dist.P2POp(dist.irecv, other, peer, self._group)]
        )
        for work in works:
            work.wait()
        own.add_(other)

    def _sum(self, losses: list[Tensor]) -> float:
        total = torch.zeros((), dtype=torch.float64)
        for loss in losses:  # only the last stage has any
            total += loss.item()
        total = total.to(self._device)
        dist.all_reduce(total, group=self._group)
        return total.item()


class _Stage(nn.Module):
    """A stage as the schedules call it, by the number of a micro-batch, whose tokens are here already."""

    def __init__(
        self,
        model: TransformerLM,
        number: int,
        num_stages: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        use_checkpointing: bool | int,
    ) -> None:
        super().__init__()
        self.model, self.number, self.autocast, self.use_checkpointing = model, number, autocast, use_checkpointing
        self.is_first, self.is_last = number == 0, number == num_stages - 1
        self.micro_batches: Sequence[MicroBatch] = ()

    def forward(self, x: Tensor, *, number: Tensor) -> Tensor:
        """The hidden states for the next stage, or the last one's loss, of micro-batch `number`."""
        rows = self.micro_batches[int(number)]
        if isinstance(self.model.embedding, Received):
            self.model.embedding.activations = x
        options: dict[str, Any] = {"segment_ids": rows.segment_ids, "use_checkpointing": self.use_checkpointing}
        keyed = nullcontext() if rows.dropout is None else dropout_key(rows.dropout)
        with self.autocast(), keyed:
            if self.is_last:
                return self.model.loss(rows.token_ids, rows.targets, **options) * rows.share
            return self.model.hidden(rows.token_ids, **options)


def _check_shapes(micro_batches: Sequence[MicroBatch]) -> None:
    shapes = sorted({tuple(one.token_ids.shape) for one in micro_batches})
    if len(shapes) != 1:
        raise ConfigError(
            f"all micro-batches of a step must have one shape in a pipeline, but these have {shapes}; choose a "
            "micro_batch_size that divides the rows of a process."
        )


def _check_interleaved(count: int, ranks: int) -> None:
    rounds = max(1, count // ranks)
    if count % rounds:
        raise ConfigError(
            f"the interleaved schedule runs its micro-batches in {rounds} equal rounds, but there are {count}; a "
            f"multiple of {ranks} would do, such as {count - count % ranks}."
        )
