"""The training loop: from settings to a folder with a trained model, through any number of interruptions."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..distributed.launch import launched
from ..distributed.processes import Processes
from ..distributed.start import started
from .checkpoint_writer import CheckpointWriter
from .checkpoints import read_parts, read_state
from .config import TrainConfig
from .device import choose_device, device_type
from .display import Display
from .environment import SHARED, compare, environment_of, versions
from .finish import Result, finish, finished_result, show
from .metrics import Lines, Metrics, NoMetrics
from .run_folder import open_together, record, undone_on_failure
from .sample import check_prompt, sample
from .signals import Stopped, StopRequest, stop_on_signals
from .tensorboard import TensorBoard, check_tensorboard
from .tokens import check_tokenizer, text_for_all
from .trainer import Trainer
from .twin import twin_of


def train(config: TrainConfig, *, resume: bool = False, display: Display | None = None) -> Result:
    """Train a model as `config` says, in the folder `config.out`, and give what it reached.

    resume: go on from the folder's newest checkpoint, with the weights and losses of a run that never stopped.
    Where the environment says that this process is one of several (torchrun sets it), all of them train one model.
    Raises ConfigError, DataError or CheckpointError for what cannot be done, PrenormError when the loss is no longer a
    number, Stopped after Ctrl-C, SIGTERM or SIGUSR1, when its checkpoint is written, and what `distributed.start` does.
    """
    display = display or Display()
    launch = launched()
    layout = config.layout(launch.world_size)
    if launch.world_size > 1:
        display.is_one_of_several(launch.rank)
    options: dict[str, Any] = {"timeout": config.timeout, "device_type": device_type(config)}
    options |= {"say": display.alarm, "note": display.note}
    same = {**versions(), **config.to_fields(), "resume": resume}
    with display.logging(), started(launch, layout, same=same, **options) as processes:
        return _train(config, processes, display, resume=resume)


def _train(config: TrainConfig, processes: Processes, display: Display, *, resume: bool) -> Result:
    with open_together(config, processes, resume=resume, say=display.say) as run:
        display.log_to(run.folder)
        display.note(f"{processes}, process {os.getpid()} on {platform.node()}")
        if processes.first("looking for a result", lambda: finished_result(run.folder, config) is not None):
            result = finished_result(run.folder, config)
            assert result is not None
            display.say(f"The run in {run.folder} is finished: all its {result.steps:,} steps are done.")
            show(result, display)
            return result
        with undone_on_failure(run):
            device = choose_device(config, display.say, None if processes.is_alone else processes.launch.local_rank)
            if config.tensorboard:
                check_tensorboard()
            with display.working("reading the text"):
                data = text_for_all(config, run.folder, processes, display.say)
            check_prompt(config, data)
            environment, done = environment_of(device, data), 0
            processes.compare({name: environment[name] for name in SHARED})
            processes.at(0, "building the model", patient=True)
            trainer = Trainer(config, data, device, display, resumed=run.checkpoint is not None, processes=processes)
            if run.checkpoint is not None:
                saved = read_state(run.checkpoint)
                compare(saved.environment, environment, run.checkpoint, display.say)
                here = dict(trainer.model.named_parameters())
                trainer.restore(read_parts(run.checkpoint, saved.parts, like=here, group=trainer.group), saved.trainer)
                done = saved.step
                display.say(f"Going on from {run.checkpoint}.")
            processes.first("looking at the tokenizer", lambda: check_tokenizer(run.folder))
            processes.first("noting the settings", lambda: record(run, config, environment))
            if done < config.steps and not trainer.early_stop.reached:
                trainer.compile(done)
        with _logs(config, run.folder, done, processes) as logs:
            with CheckpointWriter(run.folder, config, environment, trainer.group) as writer:
                done = _take_steps(trainer, run.folder, done, writer, *logs)
            if trainer.use_best():
                display.say(
                    f"The lowest held-out loss was after step {trainer.early_stop.best_step:,}: it is the model."
                )
            return finish(trainer, run.folder, logs[0], done)


def _take_steps(
    trainer: Trainer, folder: Path, done: int, writer: CheckpointWriter, metrics: Lines, samples: Lines | None
) -> int:
    """Every step after `done`, with its metrics, what is looked at in between, and checkpoints. Gives the last step."""
    config, display, processes = trainer.config, trainer.display, trainer.processes
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
            line = trainer.step(done)
            metrics.write(line)
            report(line)
            _look(trainer, done, stop, metrics, samples)
            last = done == config.steps or trainer.early_stop.reached
            due = config.checkpoint_every and done % config.checkpoint_every == 0
            # No process may stop alone: the others would wait for it in the next step.
            signal_number, failing = processes.largest(stop.signal_number, int(writer.has_failed))
            stopping = stop.agree(signal_number)
            if failing:
                writer.wait()
            if due or last or stopping:
                processes.at(done, "saving")
                metrics.sync()
                if samples:
                    samples.sync()
                writer.save(done, *trainer.to_save())
            if stopping:
                writer.wait()
                stopped = Stopped(stop.signal_number, done, folder)
                if stop.by_hand:
                    display.say(f"Ctrl-C: {stopped}")
                    _write_sample(trainer, done)
                raise stopped
    if done < config.steps:
        display.say(
            f"The held-out loss has not fallen in {config.early_stop} evaluations, so the run ends after step {done:,}."
        )
    return done


def _look(trainer: Trainer, step: int, stop: StopRequest, metrics: Lines, samples: Lines | None) -> None:
    """An evaluation and a sample, where they are due after a step, and not done; none once the run is to stop."""
    config, display, last = trainer.config, trainer.display, step == trainer.config.steps

    def stopped() -> bool:
        return stop.agree(*trainer.processes.largest(stop.signal_number))

    if config.eval_every and (step % config.eval_every == 0 or last):
        glance = None if trainer.evaluated >= step else trainer.glance(step, stopped)
        if glance and not metrics.has(step, "eval_loss"):
            metrics.write(glance)
            display.evaluation(glance)
    due = config.sample_every and step % config.sample_every == 0 and not last
    if samples and due and not stopped():
        _write_sample(trainer, step, samples)


def _write_sample(trainer: Trainer, step: int, samples: Lines | None = None) -> None:
    """Show what the model writes after a step, and add it to the samples of the run where it is not there yet."""
    model = trainer.whole_model()

    def write() -> None:
        if model is None or (samples and samples.has(step, "text")):
            return
        line = {"step": step, **sample(twin_of(model).eval(), trainer.config, trainer.data)}
        if samples:
            samples.write(line)
        trainer.display.sample(step, line)

    trainer.processes.first("writing a sample", write)


@contextmanager
def _logs(config: TrainConfig, folder: Path, done: int, processes: Processes) -> Iterator[tuple[Lines, Lines | None]]:
    """The run's metrics.jsonl and, where there are samples, samples.jsonl, up to a step; TensorBoard's file as well."""
    texts = folder / "samples.jsonl"
    if not processes.is_first:
        yield NoMetrics(), NoMetrics()
        return
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
