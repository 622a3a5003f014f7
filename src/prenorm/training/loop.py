"""The training loop: from settings to a folder with a trained model, through any number of interruptions."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from .checkpoint_writer import CheckpointWriter
from .checkpoints import read_parts, read_state
from .config import TrainConfig
from .device import choose_device
from .display import Display
from .environment import compare, environment_of
from .finish import Result, finish, finished_result, show
from .metrics import Metrics
from .run_folder import open_run, record, undone_on_failure
from .sample import check_prompt, sample
from .signals import Stopped, StopRequest, stop_on_signals
from .tensorboard import TensorBoard, check_tensorboard
from .tokens import prepare_text
from .trainer import Trainer
from .twin import twin_of


def train(config: TrainConfig, *, resume: bool = False, display: Display | None = None) -> Result:
    """Train a model as `config` says, in the folder `config.out`, and give what it reached.

    resume: go on from the folder's newest checkpoint, with the weights and losses of a run that never stopped.
    Raises ConfigError, DataError or CheckpointError for what cannot be done, PrenormError when the loss is no longer a
    number, and Stopped after Ctrl-C, SIGTERM or SIGUSR1, when its checkpoint is written.
    """
    display = display or Display()
    with open_run(config, resume=resume, say=display.say) as run:
        if result := finished_result(run.folder, config):
            display.say(f"The run in {run.folder} is finished: all its {result.steps:,} steps are done.")
            show(result, display)
            return result
        with undone_on_failure(run):
            device = choose_device(config, display.say)
            if config.tensorboard:
                check_tensorboard()
            with display.working("reading the text"):
                data = prepare_text(config, run.folder, display.say)
            check_prompt(config, data)
            environment, done = environment_of(device, data), 0
            trainer = Trainer(config, data, device, display, resumed=run.checkpoint is not None)
            if run.checkpoint is not None:
                saved = read_state(run.checkpoint)
                compare(saved.environment, environment, run.checkpoint, display.say)
                trainer.restore(read_parts(run.checkpoint, saved.parts), saved.trainer)
                done = saved.step
                display.say(f"Going on from {run.checkpoint}.")
            record(run, config, environment)
            if done < config.steps and not trainer.early_stop.reached:
                trainer.compile(done)
        with _logs(config, run.folder, done) as logs:
            with CheckpointWriter(run.folder, config, environment) as writer:
                done = _take_steps(trainer, run.folder, done, writer, *logs)
            if trainer.use_best():
                display.say(
                    f"The lowest held-out loss was after step {trainer.early_stop.best_step:,}: it is the model."
                )
            return finish(trainer, run.folder, logs[0], done)


def _take_steps(
    trainer: Trainer, folder: Path, done: int, writer: CheckpointWriter, metrics: Metrics, samples: Metrics | None
) -> int:
    """Every step after `done`, with its metrics, what is looked at in between, and checkpoints. Gives the last step."""
    config, display = trainer.config, trainer.display
    if done < config.steps:
        display.say(trainer.summary(folder, done))
    with (
        stop_on_signals() as stop,
        display.steps(done=done, total=config.steps, line_seconds=config.log_seconds) as report,
    ):
        if done:
            _look(trainer, done, stop, metrics, samples)  # which may have been left out when the run was stopped
        while done < config.steps and not trainer.early_stop.reached:
            done += 1
            writer.check()
            line = trainer.step(done)
            metrics.write(line)
            report(line)
            _look(trainer, done, stop, metrics, samples)
            last = done == config.steps or trainer.early_stop.reached
            due = config.checkpoint_every and done % config.checkpoint_every == 0
            if due or last or stop.requested:
                metrics.sync()
                if samples:
                    samples.sync()
                writer.save(done, *trainer.to_save())
            if stop.requested:
                writer.wait()
                stopped = Stopped(stop.signal_number, done, folder)
                if stop.by_hand:
                    display.say(f"Ctrl-C: {stopped}")
                    display.sample(done, sample(twin_of(trainer.model).eval(), config, trainer.data))
                raise stopped
    if done < config.steps:
        display.say(
            f"The held-out loss has not fallen in {config.early_stop} evaluations, so the run ends after step {done:,}."
        )
    return done


def _look(trainer: Trainer, step: int, stop: StopRequest, metrics: Metrics, samples: Metrics | None) -> None:
    """An evaluation and a sample, where they are due after a step, and not done; none once the run is to stop."""
    config, display, last = trainer.config, trainer.display, step == trainer.config.steps
    if config.eval_every and (step % config.eval_every == 0 or last):
        glance = None if trainer.evaluated >= step else trainer.glance(step, stopped=lambda: stop.requested)
        if glance and not metrics.has(step, "eval_loss"):
            metrics.write(glance)
            display.evaluation(glance)
    due = config.sample_every and step % config.sample_every == 0 and not last
    if samples and due and not stop.requested and not samples.has(step, "text"):
        line = {"step": step, **sample(twin_of(trainer.model).eval(), config, trainer.data)}
        samples.write(line)
        display.sample(step, line)


@contextmanager
def _logs(config: TrainConfig, folder: Path, done: int) -> Iterator[tuple[Metrics, Metrics | None]]:
    """The run's metrics.jsonl and, where there are samples, samples.jsonl, up to a step; TensorBoard's file as well."""
    texts = folder / "samples.jsonl"
    board = TensorBoard(folder / "tensorboard", up_to_step=done) if config.tensorboard else None
    try:
        with (
            Metrics(folder / "metrics.jsonl", up_to_step=done, also=board.write if board else None) as metrics,
            Metrics(texts, up_to_step=done) if config.sample_every or texts.exists() else nullcontext() as samples,
        ):
            yield metrics, samples
    finally:
        if board:
            board.close()
