"""What a training step is: a batch, its loss, the gradients, one move of the weights."""

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import PrenormError
from ..models.lm import TransformerLM
from .batches import Batch, TrainingBatches
from .config import TrainConfig
from .device import Device, compile_blocks, uncompile_blocks
from .display import Display
from .evaluation import HeldOutBatches, heldout_loss
from .metrics import Record
from .optimizer import MuonAndAdamW
from .schedule import learning_rate_scale
from .tokenizer import vocabulary_size
from .tokens import TextData
from .utilisation import Utilisation, product_rate


class Trainer:
    """A model, its optimiser and its text. What a step does follows from the settings, the weights and its number."""

    def __init__(self, config: TrainConfig, data: TextData, device: Device, display: Display) -> None:
        self.config, self.data, self.device, self.display = config, data, device, display
        self.model = build_model(config, data).to(device.device)
        self.optimizer = MuonAndAdamW(self.model, config)
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
        if not (self.config.compile and compile_blocks(self.model, self.device, self.display.say)):
            return
        start = time.perf_counter()
        try:
            with self.display.working("compiling the blocks"):
                for step in sorted({done + 1, max(done, self.short_steps) + 1}):
                    self._add_up_gradients(self.batches.at(step))
                heldout_loss(self.model, self.heldout_batches.spread(1), self.device)
        except RuntimeError as error:  # of torch.compile: no headers, a broken compiler, ...; ours would come again
            uncompile_blocks(self.model)
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
            f"On {self.device.device}, in {str(self.device.dtype).removeprefix('torch.')}: a large product runs at "
            f"{self.product_rate / 1e9:,.0f} GFLOP/s, of which MFU is the share."
        )

    def step(self, step: int) -> Record:
        """One optimiser step, 1, 2, ...: its line of metrics.

        Raises PrenormError, before the weights are touched, when the loss or its gradient is no longer a number.
        """
        start = time.perf_counter()
        torch.manual_seed(_seed(self.config.seed, step))  # of dropout: a resumed run draws the same
        batch = self.batches.at(step)
        loss = self._add_up_gradients(batch)
        largest = self.config.grad_clip or math.inf  # the whole gradient is scaled down to it
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()  # before that
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise PrenormError(
                f"the loss must stay a finite number, but at step {step} it is {loss} and its gradient's norm "
                f"{grad_norm}; start again with lower learning rates. Checkpoints are from before that."
            )
        scale = learning_rate_scale(self.config, step)
        self.optimizer.step(scale)
        tokens_per_second = batch.token_ids.numel() / (time.perf_counter() - start)
        return {
            "step": step,
            "loss": loss,
            "lr": self.config.muon_lr * scale,
            "grad_norm": grad_norm,
            "tokens_per_second": tokens_per_second,
            **self.utilisation.of(batch.token_ids.shape[1], tokens_per_second),
        }

    def glance(self, step: int) -> Record:
        """The loss on a fixed part of the held-out text: its line of metrics."""
        return self._evaluation(step, self.heldout_batches.spread(self.config.eval_batches))

    def evaluate(self, step: int) -> Record:
        """The loss on all of the held-out text: its line of metrics."""
        batches = self.display.track(self.heldout_batches, len(self.heldout_batches), "scoring all held-out text")
        return self._evaluation(step, batches)

    def _evaluation(self, step: int, batches: Iterable[Batch]) -> Record:
        loss = heldout_loss(self.model, batches, self.device)
        if not math.isfinite(loss):  # the files of a run hold finite numbers only, and --resume reads them
            raise PrenormError(
                f"the held-out loss must stay a finite number, but after step {step} it is {loss}; start again with "
                "lower learning rates."
            )
        bits = self.data.heldout_text.bits_per_byte(loss, self.data.heldout.num_targets)
        return {"step": step, "eval_loss": loss, "eval_bits_per_byte": bits}

    def _add_up_gradients(self, batch: Batch) -> float:
        """Leave the gradients of the mean loss over the batch in the parameters, and give that loss."""
        total = 0.0
        # More of them while they are short.
        rows = self.micro_batch_size * self.config.context // batch.token_ids.shape[1]
        use_checkpointing = self.config.checkpoint_activations and self.config.checkpoint_activations_every
        for part in batch.split(rows):
            share = part.num_targets / max(1, batch.num_targets)  # a mean over what is a target
            with self.device.autocast():
                inputs = part.to(self.device.device)._asdict()
                loss = self.model.loss(**inputs, use_checkpointing=use_checkpointing) * share
            loss.backward()
            total += loss.item()
        return total


def build_model(config: TrainConfig, data: TextData) -> TransformerLM:
    """The model of a run with its first weights, which follow from the seed. Its vocabulary is the tokenizer's."""
    torch.manual_seed(_seed(config.seed, 0))
    model = TransformerLM(replace(config.model, vocab_size=vocabulary_size(data.tokenizer)))
    model.eos_token_ids = data.end_ids
    return model.train()


def _seed(seed: int, step: int) -> int:
    """64 bits for torch's generator: those of step 0 draw the weights, the others draw dropout."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
