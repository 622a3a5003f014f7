"""The end of a run: save the model, score all held-out text, draw the losses, and generate a sample."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checkpoint.files import json_content, read_json, write_atomically
from ..errors import CheckpointError
from ..generation.text import TextGenerator
from ..models.lm import TransformerLM
from .config import TrainConfig
from .display import Display, clock
from .metrics import Metrics, read_metrics
from .picture import draw_losses
from .tokens import TextData
from .trainer import Trainer

SAMPLE_TOKENS = 200
SAMPLE_TEMPERATURE = 0.8


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


def finish(trainer: Trainer, run: Path, metrics: Metrics) -> Result:
    """Write the model's folder, score all held-out text, draw the losses, and show what was reached.

    result.json comes last: where it is, the run is complete. Raises CheckpointError when something cannot be written.
    """
    config, data, display = trainer.config, trainer.data, trainer.display
    trainer.model.save_pretrained(run)
    evaluation = trainer.evaluate(config.steps)
    records = [*read_metrics(run / "metrics.jsonl"), evaluation]
    draw_losses(records, run / "loss.png", display.say)
    prompt, tokens = _prompt(config, data), config.batch_size * config.context
    result = Result(
        run=str(run),
        steps=config.steps,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        # The time of all steps, in every part of a run that was stopped and resumed.
        training_seconds=sum(tokens / record["tokens_per_second"] for record in records if "loss" in record),
        eval_loss=evaluation["eval_loss"],
        eval_bits_per_byte=evaluation["eval_bits_per_byte"],
        gzip_bits_per_byte=data.heldout_text.gzip_bits_per_byte,
        xz_bits_per_byte=data.heldout_text.xz_bits_per_byte,
        prompt=prompt,
        sample=_sample(run, trainer, prompt),
        command=f"prenorm generate {shlex.quote(str(run))} --prompt {shlex.quote(prompt)}",
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
    return result if result.steps == config.steps else None


def show(result: Result, display: Display) -> None:
    """Show the table of results, the sample, and the command that generates more text."""
    display.table(
        f"Held-out text, {result.parameters / 1e6:.1f}M parameters after {clock(result.training_seconds)} of training",
        [
            ("loss", f"{result.eval_loss:.3f} nats per token"),
            ("this model", f"{result.eval_bits_per_byte:.3f} bits per byte"),
            ("gzip -9", f"{result.gzip_bits_per_byte:.3f} bits per byte"),
            ("xz -9", f"{result.xz_bits_per_byte:.3f} bits per byte"),
        ],
    )
    display.say(f"A sample, after {result.prompt!r}:\n\n{result.prompt}{result.sample}\n")
    display.say(f"The run is in {result.run}. To generate more text:\n\n  {result.command}\n")


def _prompt(config: TrainConfig, data: TextData) -> str:
    """What the sample goes on from: a Python function, or the beginning of a held-out text."""
    if not config.data:
        return "class Test"  # no space at the end: tokens begin with theirs
    start = data.heldout.tokens[1 : min(9, data.heldout.starts[1])].tolist()
    return data.tokenizer.decode(start).strip("\ufffd").strip().partition("\n")[0]


def _sample(run: Path, trainer: Trainer, prompt: str) -> str:
    """A text by the model that was saved, the way `prenorm generate` would write it."""
    model = TransformerLM.from_pretrained(run, device=trainer.device.device)
    room = model.config.max_seq_len - len(trainer.data.tokenizer.encode(prompt).ids) + 1
    generator = TextGenerator(model, trainer.data.tokenizer)
    (completion,) = generator.generate(
        [prompt], max_new_tokens=min(SAMPLE_TOKENS, room), temperature=SAMPLE_TEMPERATURE, seed=trainer.config.seed
    )
    return completion.text
