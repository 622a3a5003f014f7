"""What a training step is: a batch, its loss, the gradients, one move of the weights."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.together import Source
from ..errors import CheckpointError, PrenormError
from ..kernels.dropout_masks import DropoutKey, dropout_key
from ..models.lm import TransformerLM
from .batch_file import write_batch
from .batches import Batch, TrainingBatches
from .checkpoints import Parts
from .config import TrainConfig
from .device import Device, compile_blocks, uncompile_blocks
from .display import Display
from .early_stop import EarlyStop
from .ema import MovingAverage
from .evaluation import HeldOutBatches, heldout_loss
from .metrics import Record
from .optimizer import MuonAndAdamW
from .precision import LossScale, RoundedCopy, check_finite
from .schedule import learning_rate_scale
from .start import starting_model
from .text_start import TextStart
from .tokenizer import vocabulary_size
from .tokens import TextData
from .utilisation import Utilisation, product_rate
from .watch import Watch


class Trainer:
    """A model, its optimiser and its text. What a step does follows from the settings, the weights and its number."""

    def __init__(
        self, config: TrainConfig, data: TextData, device: Device, display: Display, *, resumed: bool = False
    ) -> None:
        """resumed: `restore` follows, so that the first weights need not be those of the run."""
        self.config, self.data, self.device, self.display = config, data, device, display
        self.model = build_model(config, data, resumed=resumed).to(device.device)
        self.optimizer = MuonAndAdamW(self.model, config)
        self.rounded = RoundedCopy(self.model, device.dtype) if device.pure else None
        self.computing = self.rounded.model if self.rounded else self.model  # what forward and backward passes run in
        self.loss_scale = LossScale() if device.dtype == torch.float16 else None
        self.average = MovingAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.early_stop = EarlyStop(self.model, config.early_stop)
        self.watch = Watch(config.on_nan, self.loss_scale, display.say, self._write_batch)
        self.text_start = TextStart(data.tokenizer)
        self.evaluated = 0  # the newest step after which there was a glance at the held-out text
        self.product_rate = product_rate(device)
        self.utilisation = Utilisation(self.model.config, self.product_rate)
        self.micro_batch_size = config.micro_batch_size or config.batch_size
        self.short_steps = int(config.short_share * config.steps) if config.short_context else 0
        self.batches = TrainingBatches(
            data.train,
            batch_size=config.batch_size,
            context=config.context,
            seed=config.seed,
            short_context=config.short_context,
            short_steps=self.short_steps,
        )
        self.heldout_batches = HeldOutBatches(
            data.heldout, batch_size=self.micro_batch_size, context=config.context, overlap=config.eval_overlap
        )

    def compile(self, done: int) -> None:
        """Compile the blocks, if asked to, for every length of row after step `done`: now, not in the middle of a run.

        Weights and random numbers are untouched. Where compiling fails, says so and goes on without.
        """
        if not (self.config.compile and compile_blocks(self.computing, self.device, self.display.say)):
            return
        start = time.perf_counter()
        try:
            with self.display.working("compiling the blocks"):
                for step in sorted({done + 1, max(done, self.short_steps) + 1}):
                    self._add_up_gradients(self.batches.at(step), step)
                heldout_loss(self.computing, self.heldout_batches.spread(1), self.device)
        except RuntimeError as error:  # of torch.compile: no headers, a broken compiler, ...; ours would come again
            uncompile_blocks(self.computing)
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.display.say(f"The blocks could not be compiled, so the run is slower: {reason[0]}")
        else:
            self.display.say(f"Compiled the blocks in {time.perf_counter() - start:.0f} s.")
        self.model.zero_grad(set_to_none=True)

    def summary(self, folder: Path, done: int) -> str:
        """What is about to happen, and on what."""
        config, parameters = self.config, sum(parameter.numel() for parameter in self.model.parameters())
        tokens = config.steps * config.batch_size * config.context
        return (
            f"Training {parameters:,} parameters in {folder} for {config.steps - done:,} steps. {config.steps:,} steps "
            f"read {tokens:,} tokens, {tokens / self.data.train.num_tokens:.1f} times the text. "
            f"On {self.device.device}, in {self.device.format}: a large product runs at "
            f"{self.product_rate / 1e9:,.0f} GFLOP/s, of which MFU is the share."
        )

    def step(self, step: int) -> Record:
        """One optimiser step, 1, 2, ...: its line of metrics.

        Where the loss or its gradient is not finite the weights stay as they are, and the step is skipped, or the run
        ends with a PrenormError: see watch.py.
        """
        start = time.perf_counter()
        batch = self.text_start.put_into(self.batches.at(step))
        loss = self._add_up_gradients(batch, step)
        grad_norm = self._clip_gradient()
        rate = learning_rate_scale(self.config, step)
        skipped = self.watch.reason_to_skip(step, loss, grad_norm)
        if skipped is None:
            self._move_weights(step, rate)
        else:
            self.model.zero_grad(set_to_none=True)
        tokens_per_second = batch.token_ids.numel() / (time.perf_counter() - start)
        record: Record = {
            "step": step,
            "loss": loss,
            "lr": self.optimizer.full_rate * rate,
            "grad_norm": grad_norm,
            "tokens_per_second": tokens_per_second,
            **self.utilisation.of(batch.token_ids.shape[1], tokens_per_second),
        }
        if self.loss_scale:
            record["loss_scale"] = self.loss_scale.scale
        if skipped:  # a file of metrics has finite numbers only
            record = {name: value for name, value in record.items() if math.isfinite(value)} | {"skipped": skipped}
        return record

    def _add_up_gradients(self, batch: Batch, step: int) -> float:
        """Leave the gradients of the mean loss over the batch's targets in the parameters, and give that loss.

        Dropout follows from seed, step and place in the batch: a resumed run drops the same.

        With a loss scale the gradients are multiplied by it.
        """
        total, targets, seq = 0.0, batch.num_targets, batch.token_ids.shape[1]
        rows = self.micro_batch_size * self.config.context // seq  # more of them while they are short
        use_checkpointing = self.config.checkpoint_activations and self.config.checkpoint_activations_every
        for number, part in enumerate(batch.split(rows)):
            share = part.num_targets / max(1, targets)  # a mean over what is a target
            first = number * rows
            key = DropoutKey(self.config.seed, step, tuple(range(first, first + len(part.token_ids))), seq)
            with self.device.autocast(), dropout_key(key):
                inputs = part.to(self.device.device)._asdict()
                loss = self.computing.loss(**inputs, use_checkpointing=use_checkpointing) * share
            (loss * self.loss_scale.scale if self.loss_scale else loss).backward()
            if self.rounded:
                self.rounded.hand_over_gradients()
            total += loss.item()
        return total

    def _clip_gradient(self) -> float:
        """Scale the whole gradient down to the largest norm that it may have, and give the norm that it had."""
        if self.loss_scale:
            self.loss_scale.unscale(self.model.parameters())
        largest = self.config.grad_clip or math.inf
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()

    def _move_weights(self, step: int, rate: float) -> None:
        """The optimiser's step, and what follows from the weights."""
        self.optimizer.step(rate)
        self._round()
        if self.average:
            self.average.update(step)

    def _write_batch(self, step: int, why: str) -> str:
        """Write the batch of a step to the run's folder, and give what a message says of it: see batch_file.py."""
        path = Path(self.config.out) / "batches" / f"{why}-step-{step:08d}.json"
        batch = self.text_start.put_into(self.batches.at(step))
        origins = [self.batches.documents(step, row) for row in range(len(batch.token_ids))]
        return write_batch(path, why, batch, origins, self.data.tokenizer)

    def glance(self, step: int, stopped: Callable[[], bool] = lambda: False) -> Record | None:
        """The loss on a fixed part of the held-out text: its line of metrics. None where it was stopped before its end.

        stopped: asked before every batch.
        """
        record = self._evaluation(step, lambda: self.heldout_batches.spread(self.config.eval_batches), stopped)
        if record is not None:
            self.evaluated = step
            self.early_stop.see(step, record["eval_loss"])
        return record

    def evaluate(self, step: int) -> Record:
        """The loss on all of the held-out text: its line of metrics."""

        def tracked() -> Iterable[Batch]:
            return self.display.track(self.heldout_batches, len(self.heldout_batches), "scoring all held-out text")

        record = self._evaluation(step, tracked, lambda: False)
        assert record is not None
        return record

    def _evaluation(
        self, step: int, batches: Callable[[], Iterable[Batch]], stopped: Callable[[], bool]
    ) -> Record | None:
        """The loss of the weights, and with an ema_ before its name that of their average, if there is one."""
        record: Record = {"step": step}
        for prefix in ("", "ema_") if self.average else ("",):
            with self.averaged() if prefix else nullcontext():
                begun = map(self.text_start.put_into, batches())
                loss = heldout_loss(self.computing, begun, self.device, stopped)
            if loss is None:
                return None
            if not math.isfinite(loss):  # the files of a run hold finite numbers only, and --resume reads them
                raise PrenormError(
                    f"the held-out loss must stay a finite number, but after step {step} it is {loss}; start again "
                    "with lower learning rates."
                )
            bits = self.data.heldout_text.bits_per_byte(loss, self.data.heldout.num_targets)
            record |= {f"{prefix}eval_loss": loss, f"{prefix}eval_bits_per_byte": bits}
        return record

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the average of its weights in their place."""
        assert self.average is not None
        try:
            with self.average.in_place():
                self._round()
                yield
        finally:
            self._round()

    def _round(self) -> None:
        """Have what computes follow the weights, where it is not the model itself."""
        if self.rounded:
            self.rounded.follow()

    def use_best(self) -> bool:
        """With early stopping: give the model the weights that had the lowest held-out loss, for the end of the run.

        Gives whether there were any.
        """
        used = self.early_stop.use_best()
        self._round()
        return used

    def to_save(self) -> tuple[Parts, dict[str, Any]]:
        """All that a resumed run needs beside its settings and its step: tensors by part, and what JSON can hold.

        The batch and the dropout of a step follow from the seed and its number, and are not among it.
        Raises PrenormError where a weight is not finite: that is never saved.
        """
        check_finite(self.model)
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_tensors()}
        state: dict[str, Any] = {
            "eos_token_ids": list(self.model.eos_token_ids),
            "evaluated": self.evaluated,
            "watch": self.watch.to_fields(),
        }
        if self.average:
            parts["ema"] = self.average.state_tensors()
        if self.loss_scale:
            state["loss_scale"] = self.loss_scale.to_fields()
        if best := self.early_stop.state_tensors():
            parts["best"], state["early_stop"] = best, self.early_stop.to_fields()
        if self.model.came_from is not None:
            state["came_from"] = asdict(self.model.came_from) | {"folder": str(self.model.came_from.folder)}
        return parts, state

    def restore(self, parts: Parts, state: Mapping[str, Any]) -> None:
        """Put back what `to_save` gave, bit for bit. Raises CheckpointError where it is that of another trainer."""
        needed = {"model", "optimizer"} | ({"ema"} if self.average else set())
        if parts.keys() - {"best"} != needed:
            raise CheckpointError(
                f"a checkpoint of this run has {', '.join(sorted(needed))}, not {', '.join(sorted(parts))}."
            )
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
        self.optimizer.load_state_tensors(parts["optimizer"])
        if self.average:
            self.average.load_state_tensors(parts["ema"])
        self._round()
        try:
            self._restore_state(parts, state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint's state.json is not that of this run: {error}.") from error

    def _restore_state(self, parts: Parts, state: Mapping[str, Any]) -> None:
        self.evaluated, self.model.eos_token_ids = int(state["evaluated"]), tuple(state["eos_token_ids"])
        self.watch.load_fields(state["watch"])
        if self.loss_scale:
            self.loss_scale.load_fields(state["loss_scale"])
        self.early_stop.load(parts.get("best", {}), state.get("early_stop", {}))
        if source := state.get("came_from"):
            known = {"folder": Path(source["folder"]), "eos_token_ids": tuple(source["eos_token_ids"])}
            self.model.came_from = Source(**source | known)


def build_model(config: TrainConfig, data: TextData, *, resumed: bool = False) -> TransformerLM:
    """The model of a run with its first weights: those of `start_from`, or new ones that follow from the seed.

    A new model's vocabulary is the tokenizer's. resumed: the weights may be any.
    """
    torch.manual_seed(int(np.random.SeedSequence([config.seed, 0]).generate_state(1, np.uint64)[0]))
    if config.start_from and not resumed:
        return starting_model(config, data.tokenizer, data.end_ids).train()
    size = config.model.vocab_size if config.start_from else vocabulary_size(data.tokenizer)
    model = TransformerLM(replace(config.model, vocab_size=size))
    model.eos_token_ids = data.end_ids
    return model.train()
