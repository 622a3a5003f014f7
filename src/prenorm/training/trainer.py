"""What a training step is: a batch, its loss, the gradients, one move of the weights."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.together import Source
from ..distributed.checkpoints import Parts, group_for_checkpoints
from ..distributed.processes import ALONE, Processes
from ..errors import CheckpointError, PrenormError
from ..models.lm import TransformerLM
from .batch_file import write_batch
from .batches import Batch, TrainingBatches
from .build import build_model, build_without_data
from .config import TrainConfig
from .data.reading import count
from .device import Device
from .display import Display
from .early_stop import EarlyStop
from .ema import MovingAverage
from .evaluation import HeldOutBatches
from .metrics import Record
from .optimizer import MuonAndAdamW
from .passes import Passes
from .precision import check_finite
from .schedule import learning_rate_scale
from .text_start import TextStart
from .tokens import TextData
from .utilisation import Utilisation, product_rate
from .watch import Watch


class Trainer:
    """A model, its optimiser and its text. What a step does follows from the settings, the weights and its number."""

    def __init__(
        self,
        config: TrainConfig,
        data: TextData,
        device: Device,
        display: Display,
        *,
        resumed: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        """resumed: `restore` follows, so that the first weights need not be those of the run.

        processes: what has the others, where this is one of several that train one model.
        """
        self.config, self.data, self.device, self.display, self.processes = config, data, device, display, processes
        layout = processes.place.layout
        shared = layout.fsdp * layout.tp * layout.pp > 1  # no process has more of the model in memory than its part
        if shared:
            model, weights = build_without_data(config, data, resumed=resumed)
        else:
            model, weights = build_model(config, data, resumed=resumed).to(device.device), ()
        config.layout(processes.launch.world_size, model.config)  # the vocabulary is known now
        self.passes = _passes_of(processes)(model, config, device, display, processes)
        if shared:
            self.passes.fill(weights)
        self.model, self.computing, self.loss_scale = self.passes.model, self.passes.computing, self.passes.loss_scale
        self.group = group_for_checkpoints(config.timeout)
        self.optimizer = MuonAndAdamW(self.model, config)
        self.average = MovingAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.early_stop = EarlyStop(self.model, config.early_stop)
        self.watch = Watch(config.on_nan, self.loss_scale, display.say, self._write_batch)
        self.text_start = TextStart(data.tokenizer)
        self.evaluated = 0  # the newest step after which there was a glance at the held-out text
        self.product_rate = product_rate(device)
        self.utilisation = Utilisation(self.passes.sizes, self.product_rate * layout.world_size)
        self.short_steps = int(config.short_share * config.steps) if config.short_context else 0
        share = (processes.place.data_rank, layout.data_ranks)  # of the rows of every batch
        self.batches = TrainingBatches(
            data.train,
            batch_size=config.batch_size,
            context=config.context,
            seed=config.seed,
            short_context=config.short_context,
            short_steps=self.short_steps,
            share=share,
        )
        self.heldout_batches = HeldOutBatches(
            data.heldout,
            batch_size=config.micro_batch_size or config.batch_size,
            context=config.context,
            overlap=config.eval_overlap,
            rows=self.passes.rows_at_once,
            share=share,
        )

    def compile(self, done: int) -> None:
        """Compile the blocks, if asked to, for every length of row after step `done`."""
        if self.config.compile:
            steps = sorted({done + 1, max(done, self.short_steps) + 1})
            self.passes.compile(map(self.batches.at, steps), self.heldout_batches.spread(1))

    def whole_model(self) -> TransformerLM | None:
        """The model with all its weights, in the first process; None in the others. All processes call this."""
        self.processes.at(self.evaluated, "gathering the weights", patient=True)
        return self.passes.whole_model(self.group)

    def summary(self, folder: Path, done: int) -> str:
        """What is about to happen, and on what."""
        config, parameters = self.config, self.passes.num_parameters
        tokens = config.steps * config.batch_size * config.context
        return (
            f"Training {parameters:,} parameters in {folder} for {count(config.steps - done, 'step')}. "
            f"{count(config.steps, 'step')} read {tokens:,} tokens, "
            f"{tokens / self.data.train.num_tokens:.1f} times the text. "
            f"On {self.device.device}, in {self.device.format}: a large product runs at "
            f"{self.product_rate / 1e9:,.0f} GFLOP/s, of which MFU is the share."
        )

    def step(self, step: int) -> Record:
        """One optimiser step, 1, 2, ...: its line of metrics, of all processes together.

        Where the loss or its gradient is not finite the weights stay as they are, and the step is skipped, or the run
        ends with a PrenormError: see watch.py. All processes do the same, for they have the same loss and norm.
        """
        start, at = time.perf_counter(), self.processes.at
        at(step, "reading the batch")
        batch = self.text_start.put_into(self.batches.at(step))
        loss = self.passes.add_up_gradients(batch, step)
        at(step, "clipping the gradient")
        grad_norm = self.passes.clip_gradient()
        rate = learning_rate_scale(self.config, step)
        skipped = self.watch.reason_to_skip(step, loss, grad_norm)
        at(step, "moving the weights")
        if skipped is None:
            self._move_weights(step, rate)
        else:
            self.model.zero_grad(set_to_none=True)
        tokens = batch.token_ids.numel() * self.processes.place.layout.data_ranks
        tokens_per_second = tokens / (time.perf_counter() - start)
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

    def _move_weights(self, step: int, rate: float) -> None:
        """The optimiser's step, and what follows from the weights."""
        self.optimizer.step(rate)
        self.passes.follow()
        if self.average:
            self.average.update(step)

    def _write_batch(self, step: int, why: str) -> str:
        """Write the batch of a step to the run's folder, and give what a message says of it: see batch_file.py."""
        path = Path(self.config.out) / "batches" / f"{why}-step-{step:08d}.json"

        def write() -> str:
            batch = self.text_start.put_into(self.batches.whole(step))
            origins = [self.batches.documents(step, row) for row in range(len(batch.token_ids))]
            return write_batch(path, why, batch, origins, self.data.tokenizer)

        return self.processes.first("writing the batch to a file", write)

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
                begun = map(self.text_start.put_into, self._noted(step, batches()))
                loss = self.passes.heldout_loss(begun, stopped)
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

    def _noted(self, step: int, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.processes.at(step, "scoring held-out text")
            yield batch

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the average of its weights in their place."""
        assert self.average is not None
        try:
            with self.average.in_place():
                self.passes.follow()
                yield
        finally:
            self.passes.follow()

    def use_best(self) -> bool:
        """With early stopping: give the model the weights that had the lowest held-out loss, for the end of the run.

        Gives whether there were any.
        """
        used = self.early_stop.use_best()
        self.passes.follow()
        return used

    def to_save(self) -> tuple[Parts, dict[str, Any]]:
        """All that a resumed run needs beside its settings and its step: tensors by part, and what JSON can hold.

        The batch and the dropout of a step follow from the seed and its number, and are not among it.
        Raises PrenormError where a weight is not finite: that is never saved.
        """
        check_finite(self.model, self.processes.largest)
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
        self.passes.follow()
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


def _passes_of(processes: Processes) -> type[Passes]:
    if processes.is_alone:
        return Passes
    from .spread_passes import SpreadPasses  # with PyTorch's engines, which take a second to load

    return SpreadPasses
