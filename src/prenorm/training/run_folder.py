"""The folder of a run: who may write in it, and what must agree with what is there."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.files import json_content, write_atomically, write_together
from ..distributed.processes import Processes
from ..errors import ConfigError
from ..locks import lock
from .checkpoints import latest_checkpoint, read_state, remove_leftovers
from .config import TrainConfig, config_to_toml, differences, read_toml
from .data.corpus import Say
from .rank_log import FOLDER as LOGS
from .schedule import learning_rate_scale

# How processes share a model: a checkpoint opens at any layout, whose sums differ in their last bits.
LAYOUT = {"dp", "fsdp", "tp", "pp", "pp_stages"}
# What touches neither the weights nor the text that they are evaluated on may change when a run goes on; steps may when
# the schedule so far stays the same.
FREE = {
    *LAYOUT,
    "out",
    "steps",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "log_seconds",
    "checkpoint_activations",
    "checkpoint_activations_every",
    "on_nan",
    "early_stop",
    "device",  # what these two stand for is compared: see environment.py
    "dtype",
    "sample_every",
    "sample_prompt",
    "tensorboard",
    "timeout",
}

# What a run writes before its first step.
SETUP_FILES = (
    "config.toml",
    "environment.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "data/*.json",
    "data/chat_template.jinja",
    "data/train-*.npy",
    "data/heldout-*.npy",
)


# What a start leaves that failed, or was killed while it wrote the settings.
LEFT_BY_A_START = (LOGS, ".config.toml.*.tmp")


class OpenRun(NamedTuple):
    """A run's folder, the checkpoint to go on from (None: start), and whether there was nothing in it before."""

    folder: Path
    checkpoint: Path | None
    fresh: bool


@contextmanager
def open_run(config: TrainConfig, *, resume: bool, say: Say) -> Iterator[OpenRun]:
    """Holds the folder of a run for this process alone. A new run has its config.toml in it from the beginning.

    Raises ConfigError when the folder holds a run and `resume` is not asked for, when it holds a run of other settings
    or something else, and when another process trains in it.
    """
    folder = Path(config.out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out must be a folder, but {folder} is a file; choose another --out.")
    with _alone(folder):
        fresh = _check_folder(folder, resume)  # not before: another process may have just begun to write there
        checkpoint = None if fresh else _checkpoint_to_resume(folder, config, say)
        if resume and checkpoint is None:
            say(f"There is no checkpoint in {folder} yet: starting from the beginning.")
        if checkpoint is None:  # or whoever interrupts the setting up leaves a folder of which nobody knows what it is
            write_atomically(folder / "config.toml", _toml(config))
        yield OpenRun(folder, checkpoint, fresh)


@contextmanager
def open_together(config: TrainConfig, processes: Processes, *, resume: bool, say: Say) -> Iterator[OpenRun]:
    """`open_run` in the first of the processes. The others learn what it found, and none of them has the folder fresh,
    so that only the first undoes what it has written."""
    with ExitStack() as stack:

        def opened() -> tuple[str, str | None, bool]:
            run = stack.enter_context(open_run(config, resume=resume, say=say))
            return str(run.folder), None if run.checkpoint is None else str(run.checkpoint), run.fresh

        folder, checkpoint, fresh = processes.first("opening the run's folder", opened)
        yield OpenRun(Path(folder), Path(checkpoint) if checkpoint else None, fresh and processes.is_first)


def record(run: OpenRun, config: TrainConfig, environment: Mapping[str, Any]) -> None:
    """Leave in a run's folder what it goes on with, once nothing speaks against it."""
    write_together(
        {run.folder / "environment.json": json_content(environment), run.folder / "config.toml": _toml(config)}
    )


@contextmanager
def undone_on_failure(run: OpenRun) -> Iterator[None]:
    """While a run is set up: when that fails in a fresh folder, what was written there is deleted, so that the same
    command can be given again."""
    try:
        yield
    except BaseException:
        if run.fresh:
            for path in [path for pattern in SETUP_FILES for path in run.folder.glob(pattern)]:
                path.unlink(missing_ok=True)
            for folder in (run.folder / "data", run.folder):
                with suppress(OSError):  # not empty: somebody else's
                    folder.rmdir()
        raise


def _toml(config: TrainConfig) -> bytes:
    return config_to_toml(config).encode("utf-8")


def _check_folder(run: Path, resume: bool) -> bool:
    """Whether a run starts here from nothing."""
    if all(any(fnmatch(path.name, left) for left in LEFT_BY_A_START) for path in run.iterdir()):
        return True
    if not (run / "config.toml").is_file():
        raise ConfigError(f"out must be a new folder or a run's, but {run} holds other things; choose another --out.")
    if not resume:
        raise ConfigError(f"{run} holds a run already: go on with it by --resume, or choose another --out.")
    return False


def _checkpoint_to_resume(run: Path, config: TrainConfig, say: Say) -> Path | None:
    _check_agreement(f"the run in {run}", _config_in(run / "config.toml"), config, step=0)
    remove_leftovers(run)
    checkpoint = latest_checkpoint(run)
    if checkpoint is not None:
        state = read_state(checkpoint)
        _check_agreement(str(checkpoint), state.config, config, step=state.step)
    return checkpoint


def _config_in(path: Path) -> TrainConfig:
    fields = read_toml(path)
    try:
        return TrainConfig.from_fields(fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_agreement(what: str, old: TrainConfig, new: TrainConfig, *, step: int) -> None:
    differing = differences(old, new)
    # Another layout may need other micro-batches, which change the order of sums, as it does itself.
    free = FREE if LAYOUT.isdisjoint(differing) else {*FREE, "micro_batch_size"}
    changed = {name: values for name, values in differing.items() if name not in free}
    taken = range(1, step + 1)
    same_rates = all(learning_rate_scale(old, s) == learning_rate_scale(new, s) for s in taken)
    if not changed and not (new.steps >= step and same_rates):
        changed = {"steps": (old.steps, new.steps)}
    if changed:
        listed = ", ".join(
            f"{name} is {before!r} there and {after!r} here" for name, (before, after) in changed.items()
        )
        raise ConfigError(
            f"a run goes on exactly only with the settings of {what}, but {listed}; "
            "leave that out, or start another run with another --out."
        )


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """The folder, made if need be, with a lock on it that ends with this process."""
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(
                f"out must be a folder that can be made and read, but {run} cannot: {error.strerror}; choose another "
                "--out."
            ) from error
        stack.callback(os.close, descriptor)
        try:
            lock(descriptor, wait=False)
        except BlockingIOError as error:
            raise ConfigError(f"another process is training in {run}; wait for it, or choose another --out.") from error
        except OSError:  # some network file systems have no locks; there is only nobody to warn
            pass
        yield
