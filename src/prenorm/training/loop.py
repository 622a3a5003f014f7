"""The training loop: from settings to a folder with a trained model, through any number of interruptions."""

from pathlib import Path

from .checkpoints import read_parts, read_state, save_checkpoint
from .config import TrainConfig
from .device import choose_device
from .display import Display
from .finish import Result, finish, finished_result, show
from .metrics import Metrics
from .run_folder import open_run, undone_on_failure
from .signals import Stopped, stop_on_signals
from .tokens import prepare_text
from .trainer import Trainer


def train(config: TrainConfig, *, resume: bool = False, display: Display | None = None) -> Result:
    """Train a model as `config` says, in the folder `config.out`, and give what it reached.

    resume: go on from the folder's newest checkpoint, with the weights and losses of a run that never stopped.
    Raises ConfigError, DataError or CheckpointError for what cannot be done, PrenormError when the loss is no longer a
    number, and Stopped after Ctrl-C, when its checkpoint is written.
    """
    display = display or Display()
    with open_run(config, resume=resume, say=display.say) as run:
        if result := finished_result(run.folder, config):
            display.say(f"The run in {run.folder} is finished: all its {config.steps:,} steps are done.")
            show(result, display)
            return result
        with undone_on_failure(run):
            device = choose_device(config)
            with display.working("reading the text"):
                data = prepare_text(config, run.folder, display.say)
            trainer = Trainer(config, data, device, display)
            done = 0
            if run.checkpoint is not None:
                saved = read_state(run.checkpoint)
                trainer.restore(read_parts(run.checkpoint, saved.parts), saved.trainer)
                done = saved.step
                display.say(f"Going on from {run.checkpoint}.")
            if done < config.steps:
                trainer.compile(done)
        with Metrics(run.folder / "metrics.jsonl", up_to_step=done) as metrics:
            _take_steps(trainer, run.folder, done, metrics)
            return finish(trainer, run.folder, metrics)


def _take_steps(trainer: Trainer, folder: Path, done: int, metrics: Metrics) -> None:
    """Every step after `done`, with its metrics, glances at the held-out text, and checkpoints."""
    config, display = trainer.config, trainer.display
    if done < config.steps:
        display.say(trainer.summary(folder, done))
    with (
        stop_on_signals() as stop,
        display.steps(done=done, total=config.steps, line_seconds=config.log_seconds) as report,
    ):
        for step in range(done + 1, config.steps + 1):
            last = step == config.steps
            record = trainer.step(step)
            metrics.write(record)
            report(record)
            if config.eval_every and step % config.eval_every == 0 and not last:
                glance = trainer.glance(step)
                metrics.write(glance)
                display.evaluation(glance)
            due = config.checkpoint_every and step % config.checkpoint_every == 0
            if due or last or stop.requested:
                metrics.sync()
                save_checkpoint(folder, step, config, *trainer.to_save())
            if stop.requested and not last:
                raise Stopped(stop.signal_number, step, folder)
