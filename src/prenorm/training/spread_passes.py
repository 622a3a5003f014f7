"""The passes of one of several processes: the model is spread over them, by PyTorch's engines."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from ..distributed.checkpoints import gathered
from ..distributed.data_parallel import no_sync
from ..distributed.exchange import Group
from ..distributed.fill import fill
from ..distributed.gradients import clip_grad_norm_
from ..distributed.parallelize import parallelize
from ..distributed.pipeline import MicroBatch, Pipeline
from ..kernels.dropout_masks import DropoutKey
from ..models.lm import TransformerLM
from .batches import Batch
from .evaluation import heldout_loss
from .passes import Passes, Rows
from .twin import twin_of


class SpreadPasses(Passes):
    """As `Passes`, with the others: gradients are those of all rows, and losses those of all processes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        mesh = self.processes.mesh
        assert mesh is not None
        self._mesh: DeviceMesh = mesh
        self._pipeline: Pipeline | None = None
        if self.processes.place.layout.pp > 1:
            self._pipeline = Pipeline(
                self.model,
                mesh,
                stages_per_rank=self.config.pp_stages,
                autocast=self.device.autocast,
                use_checkpointing=self.use_checkpointing,
                autocast_dtype=self.device.autocast_dtype,
                device=self.device.device,
            )
            return
        parallelize(self.model, mesh, autocast_dtype=self.device.autocast_dtype)
        if self.rounded:
            parallelize(self.computing, mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))

    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As in `Passes`: this process keeps its part of each.

        Raises ConfigError, in all processes, where they got different weights, such as those of two folders.
        """
        sample = fill(self.model, weights, self.device.device)
        self.processes.compare({"the hash of the first weights": sample})
        if self.rounded:
            self.computing.to_empty(device=self.device.device)
            self.rounded.follow()

    def run(self, micro_batches: Sequence[Rows], step: int) -> float:
        """As in `Passes`; in a pipeline all micro-batches are under way at once."""
        if self._pipeline is None:
            return super().run(micro_batches, step)
        self.processes.at(step, "forward and backward in the pipeline")
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        parts = [self._micro_batch(rows.batch, rows.share * scale, rows.dropout) for rows in micro_batches]
        return self._pipeline.add_up_gradients(parts) / scale

    def until_the_last(self, last: bool) -> AbstractContextManager[None]:
        """Gradients go between processes once a step, or where they are added up in another model, every time."""
        return nullcontext() if last or self.rounded else no_sync(self.computing)

    def clip(self, largest: float) -> float:
        """As in `Passes`: the norm is that of the parts of all processes."""
        tied = self._pipeline.tied_weight if self._pipeline and self.processes.place.pp else None
        elsewhere = [] if tied is None else [tied]  # on the first stage, which has the same gradient
        return clip_grad_norm_(self.model.parameters(), largest, self._mesh, counted_elsewhere=elsewhere).item()

    def heldout_loss(self, batches: Iterable[Batch], stopped: Callable[[], bool] = lambda: False) -> float | None:
        """As in `Passes`.

        FSDP2 keeps the outermost weights gathered for a backward pass, which does not come here: they would stay as
        they are while the weights change.
        """
        loss_of = None if self._pipeline is None else self._pipeline_loss
        loss = heldout_loss(self.computing, batches, self.device, stopped, loss_of=loss_of, sums=self.processes.sum)
        for module in self.computing.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return loss

    def _pipeline_loss(self, batch: Batch) -> float:
        """The mean loss of a batch, in all stages."""
        assert self._pipeline is not None
        return self._pipeline.loss([self._micro_batch(batch, 1.0, None)])

    def whole_model(self, group: Group) -> TransformerLM | None:
        """As in `Passes`. It is a copy on the CPU, unless each process has the whole model."""
        layout, is_first = self.processes.place.layout, self.processes.is_first
        if layout.fsdp * layout.tp * layout.pp == 1:
            return twin_of(self.model) if is_first else None
        tensors = gathered(self.model.state_dict(), group)
        return twin_of(self.model, self.sizes, tensors) if is_first else None

    def compile(self, batches: Iterable[Batch], heldout: Iterable[Batch]) -> None:
        """As in `Passes`, where each process has the whole model."""
        layout = self.processes.place.layout
        if layout.fsdp * layout.tp * layout.pp > 1:
            self.display.say(
                f"Blocks are compiled where each process has them whole, but with {layout} processes share them: they "
                f"are not compiled, and the run is slower. --dp {layout.world_size} alone would compile them."
            )
            return
        self.processes.at(0, "compiling the blocks", patient=True)
        super().compile(batches, heldout)

    def _micro_batch(self, batch: Batch, share: float, dropout: DropoutKey | None) -> MicroBatch:
        return MicroBatch(**batch.to(self.device.device)._asdict(), share=share, dropout=dropout)
