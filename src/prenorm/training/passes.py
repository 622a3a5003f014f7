"""What computes: the model in its number format, and its passes forward and backward over the rows of a batch."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed.exchange import Group
from ..distributed.processes import Processes
from ..kernels.dropout_masks import DropoutKey, dropout_key
from ..models.lm import TransformerLM
from .batches import Batch
from .config import TrainConfig
from .device import Device, compile_blocks, uncompile_blocks
from .display import Display
from .evaluation import heldout_loss
from .precision import LossScale, RoundedCopy


class Rows(NamedTuple):
    """A micro-batch, the weight of its mean loss in that of the step, and what its dropout follows from."""

    batch: Batch
    share: float
    dropout: DropoutKey


class Passes:
    """A model, and what a process computes with it.

    model: has the weights, in float32. computing: what forward and backward passes run in, the model itself or a
    rounded copy. num_parameters, sizes: of the whole model, of which one of several processes may have a part.
    """

    def __init__(
        self, model: TransformerLM, config: TrainConfig, device: Device, display: Display, processes: Processes
    ) -> None:
        self.model, self.sizes = model, model.config
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.config, self.device, self.display, self.processes = config, device, display, processes
        self.rounded = RoundedCopy(model, device.dtype) if device.pure else None
        self.computing = self.rounded.model if self.rounded else model
        self.loss_scale = LossScale() if device.dtype == torch.float16 else None
        self.use_checkpointing = config.checkpoint_activations and config.checkpoint_activations_every
        self.rows_at_once = config.micro_batch_size or config.batch_size // processes.place.layout.data_ranks

    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Give a model that was built without data (meta) its weights, of which each comes whole, with its name.

        Weights that do not come are not initialised.
        """
        raise AssertionError("the model of one process is built with its weights")

    def add_up_gradients(self, batch: Batch, step: int) -> float:
        """Leave the gradients of the mean loss over the whole batch's targets in the parameters, and give that loss.

        batch: this process's rows. Dropout follows from seed, step and place in the whole batch: a resumed run drops
        the same. With a loss scale the gradients are multiplied by it.
        """
        place, seq = self.processes.place, batch.token_ids.shape[1]
        data_ranks, copies = place.layout.data_ranks, place.layout.tp * place.layout.pp  # so many have the same rows
        targets = self.processes.sum(float(batch.num_targets))[0] / copies
        first = place.data_rank * len(batch.token_ids)
        micro_batches = []
        for part in batch.split(self.rows_at_once * self.config.context // seq):  # more of them while they are short
            rows = range(first, first := first + len(part.token_ids))
            share = part.num_targets / max(1, targets)  # a mean over what is a target
            key = DropoutKey(self.config.seed, step, tuple(rows), seq, place.tp, place.layout.tp)
            # The gradients of data ranks are averaged, and must be added.
            micro_batches.append(Rows(part, share * data_ranks, key))
        total = self.run(micro_batches, step)
        return self.processes.sum(total)[0] / (copies * data_ranks)

    def run(self, micro_batches: Sequence[Rows], step: int) -> float:
        """Forward and backward through all micro-batches. Gives the sum of their losses times their shares."""
        total, at = 0.0, self.processes.at
        for number, rows in enumerate(micro_batches, start=1):
            at(step, "forward")
            with self.until_the_last(number == len(micro_batches)):
                with self.device.autocast(), dropout_key(rows.dropout):
                    inputs = rows.batch.to(self.device.device)._asdict()
                    loss = self.computing.loss(**inputs, use_checkpointing=self.use_checkpointing) * rows.share
                at(step, "backward")
                (loss * self.loss_scale.scale if self.loss_scale else loss).backward()
            if self.rounded:
                self.rounded.hand_over_gradients()
            total += loss.item()
        return total

    def until_the_last(self, last: bool) -> AbstractContextManager[None]:
        """What a micro-batch runs in; last: whether its gradients complete those of the step."""
        return nullcontext()

    def clip_gradient(self) -> float:
        """Scale the whole gradient down to the largest norm that it may have, and give the norm that it had."""
        if self.loss_scale:
            self.loss_scale.unscale(self.model.parameters())
        return self.clip(self.config.grad_clip or math.inf)

    def clip(self, largest: float) -> float:
        """The same, to this norm."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()

    def heldout_loss(self, batches: Iterable[Batch], stopped: Callable[[], bool] = lambda: False) -> float | None:
        """The mean loss over all that the batches of all processes score: see evaluation.py."""
        return heldout_loss(self.computing, batches, self.device, stopped)

    def whole_model(self, group: Group) -> TransformerLM | None:
        """The model with all its weights, in the first process; None in the others. All of the group call this."""
        return self.model

    def follow(self) -> None:
        """Have what computes follow the weights, where it is not the model itself."""
        if self.rounded:
            self.rounded.follow()

    def compile(self, batches: Iterable[Batch], heldout: Iterable[Batch]) -> None:
        """Compile the blocks for batches of these sizes: now, not in the middle of a run.

        Weights and random numbers are untouched. Where compiling fails, in any process, says so and goes on without.
        """
        say = self.display.say
        if not self._in_all(compile_blocks(self.computing, self.device, say)):
            uncompile_blocks(self.computing)
            return
        start, reason = time.perf_counter(), ""
        try:
            with self.display.working("compiling the blocks"):
                for batch in batches:
                    self.add_up_gradients(batch, 0)
                self.heldout_loss(heldout)
        except RuntimeError as error:  # of torch.compile: no headers, a broken compiler, ...; ours would come again
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if self._in_all(not reason):
            say(f"Compiled the blocks in {time.perf_counter() - start:.0f} s.")
        else:
            uncompile_blocks(self.computing)
            say(
                f"The blocks could not be compiled, so the run is slower: {reason or 'they could not in every process'}"
            )
        self.model.zero_grad(set_to_none=True)

    def _in_all(self, here: bool) -> bool:
        """Whether something holds in all processes."""
        return self.processes.largest(int(not here)) == [0]
