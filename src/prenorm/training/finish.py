"""The end of a run: save the model, score all held-out text, draw the losses, and generate a sample."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.files import json_content, read_json, write_atomically, write_together
from ..errors import CheckpointError
from ..models.lm import TransformerLM
from .config import TrainConfig
from .display import Display, clock
from .metrics import Lines, Record, read_metrics
from .picture import draw_losses
from .sample import sample
from .tokenizer import tokenizer_files
from .trainer import Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of a run. The loss is in nats per token; all bits per byte are for the same held-out text."""

    run: str
    steps: int
    parameters: int
    training_seconds: float
    eval_loss: float
    eval_bits_per_byte: float
    gzip_bits_per_byte: float
    xz_bits_per_byte: float
    prompt: str
    sample: str
    command: str
    early_stop: int = 0  # the setting that ended the run, where it was that
    weights_of_step: int = 0  # 0: of the last one
    skipped_steps: int = 0
    ema_eval_loss: float | None = None
    ema_eval_bits_per_byte: float | None = None


def finish(trainer: Trainer, run: Path, metrics: Lines, steps: int) -> Result:
    """Write the model's folder, score all held-out text, draw the losses, and show what was reached after `steps`.

    The average of the weights, if there is one, gets a folder of its own. result.json comes last: where it is, the run
    is complete. Of several processes, all score the text, and the first one writes; each gets the result.
    Raises CheckpointError when something cannot be written.
    """
    first = trainer.processes.first
    first("saving the model", _saving(trainer, run), patient=False)
    if trainer.average:
        with trainer.averaged():
            first("saving the averaged model", _saving(trainer, run / "ema"), patient=False)
    evaluation = trainer.evaluate(steps) | {"all_text": True}
    parameters = trainer.passes.num_parameters

    def conclude() -> dict[str, Any]:
        return asdict(_conclude(trainer, run, metrics, steps, evaluation, parameters))

    return Result(**first("writing the result", conclude))


def _saving(trainer: Trainer, folder: Path) -> Callable[[], None]:
    """What writes the model to a folder. All processes call this; then the first one writes."""
    model = trainer.whole_model()

    def save() -> None:
        assert model is not None
        model.save_pretrained(folder)
        if folder.name == "ema":  # the run itself has them already
            files = tokenizer_files(trainer.data.tokenizer)
            write_together({folder / name: content for name, content in files.items()})

    return save


def _conclude(trainer: Trainer, run: Path, metrics: Lines, steps: int, evaluation: Record, parameters: int) -> Result:
    """Draw the losses, generate a sample, and write and show the result."""
    config, data, display = trainer.config, trainer.data, trainer.display
    records = [*read_metrics(run / "metrics.jsonl"), evaluation]
    draw_losses(records, run / "loss.png", display.say)
    tokens = config.batch_size * config.context
    # By the model that was saved, the way `prenorm generate` would write it.
    written = sample(TransformerLM.from_pretrained(run, device=trainer.device.device), config, data)
    result = Result(
        run=str(run),
        steps=steps,
        parameters=parameters,
        # The time of all steps, in every part of a run that was stopped and resumed.
        training_seconds=sum(
            tokens / record["tokens_per_second"] for record in records if "tokens_per_second" in record
        ),
        eval_loss=evaluation["eval_loss"],
        eval_bits_per_byte=evaluation["eval_bits_per_byte"],
        gzip_bits_per_byte=data.heldout_text.gzip_bits_per_byte,
        xz_bits_per_byte=data.heldout_text.xz_bits_per_byte,
        prompt=written["prompt"],
        sample=written["text"],
        command=f"prenorm generate {shlex.quote(str(run))} --prompt {shlex.quote(written['prompt'])}",
        early_stop=config.early_stop if steps < config.steps else 0,
        weights_of_step=trainer.early_stop.best_step,
        skipped_steps=sum(trainer.watch.skipped.values()),
        ema_eval_loss=evaluation.get("ema_eval_loss"),
        ema_eval_bits_per_byte=evaluation.get("ema_eval_bits_per_byte"),
    )
    metrics.write(evaluation)
    write_atomically(run / "result.json", json_content(asdict(result)))
    show(result, display)
    return result


def finished_result(run: Path, config: TrainConfig) -> Result | None:
    """The result of a complete run, None if it is not complete. Raises CheckpointError for a broken file."""
    path = run / "result.json"
    if not path.exists():
        return None
    try:
        result = Result(**read_json(path))
    except TypeError as error:
        raise CheckpointError(
            f"{path} is not a run's result ({error}); delete it, and --resume writes it again."
        ) from error
    by_early_stop = result.early_stop > 0 and result.early_stop == config.early_stop
    return result if by_early_stop or result.steps == config.steps else None


def show(result: Result, display: Display) -> None:
    """Show the table of results, the sample, and the command that generates more text."""
    average = result.ema_eval_bits_per_byte
    display.table(
        f"Held-out text, {result.parameters:,} parameters after {clock(result.training_seconds)} of training",
        [
            ("loss", f"{result.eval_loss:.3f} nats per token"),
            ("this model", f"{result.eval_bits_per_byte:.3f} bits per byte"),
            ("gzip -9", f"{result.gzip_bits_per_byte:.3f} bits per byte"),
            ("xz -9", f"{result.xz_bits_per_byte:.3f} bits per byte"),
            *([] if average is None else [("averaged weights", f"{average:.3f} bits per byte")]),
        ],
    )
    if average is not None:
        display.say(f"The averaged weights are a model of their own, in {Path(result.run) / 'ema'}.")
    if result.skipped_steps:
        display.say(f"Steps that were skipped: {result.skipped_steps:,}; metrics.jsonl has each, with the reason.")
    display.say(f"A sample, after {result.prompt!r}:\n\n{result.prompt}{result.sample}\n")
    display.say(f"The run is in {result.run}. To generate more text:\n\n  {result.command}\n")
