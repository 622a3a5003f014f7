"""Runs that are killed and resumed, against the run that never stopped. `python -m tests.training.resumed FILE` is one
warm process, from which every run is forked.

FILE has JSON: the texts, a folder to work in, how many steps there are before the kill and after the checkpoint, and by
name the settings that each run has beside those of tests/training/conftest.py. Prints the names.

float16's loss scale begins too large and grows after few steps, so that it falls and rises after the checkpoint, too.
"""

import functools
import itertools
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prenorm.training import loop, precision, trainer
from prenorm.training.checkpoints import latest_checkpoint, read_parts, read_state
from prenorm.training.config import TrainConfig
from prenorm.training.display import Display

from .conftest import losses, tiny_config


def compare(texts: Path, work: Path, name: str, fields: dict[str, Any], before: int, after: int) -> None:
    """Raise AssertionError unless the run that was killed and resumed is the one that was not, bit for bit."""
    draw = random.Random(name)
    steps, killed_at = before + after, before + draw.randrange(1, min(after, 10))
    common = {"steps": steps, "checkpoint_every": before, "eval_every": 0, "keep_checkpoints": steps, **fields}
    whole, cut = (tiny_config(texts, work / f"{name}-{which}", **common) for which in ("whole", "cut"))
    assert forked(functools.partial(run, whole)) == 0
    assert forked(functools.partial(run, cut, killed_at=killed_at)) == -signal.SIGKILL
    kept = latest_checkpoint(Path(cut.out))  # none where the kill came before it was written
    assert kept is None or read_state(kept).step == before
    assert forked(functools.partial(run, cut, resume=True)) == 0
    taken = [record for record in losses(Path(whole.out)) if "eval_loss" not in record]
    assert [record["step"] for record in taken] == [*range(1, steps + 1)]
    assert losses(Path(whole.out)) == losses(Path(cut.out))
    if whole.dtype == "float16":
        scales = [record["loss_scale"] for record in taken[before - 1 :]]
        assert {1 / 2, 2} <= {scale / last for last, scale in itertools.pairwise(scales)}, scales
    for folder in sorted((Path(whole.out) / "checkpoints").iterdir()):
        assert_same(folder, Path(cut.out) / "checkpoints" / folder.name)
    one, other = (torch.load(Path(config.out) / "end.pt", weights_only=True) for config in (whole, cut))
    assert all(torch.equal(one[what], other[what]) for what in one), [*one]


def assert_same(folder: Path, other: Path) -> None:
    """Both checkpoints have the same bits."""
    state, other_state = read_state(folder), read_state(other)
    assert state.trainer == other_state.trainer
    assert state.environment == other_state.environment
    assert state.parts == other_state.parts
    parts, others = read_parts(folder, state.parts), read_parts(other, state.parts)
    for part in parts:
        assert parts[part].keys() == others[part].keys()
        differing = [name for name, tensor in parts[part].items() if not torch.equal(tensor, others[part][name])]
        assert not differing, (folder.name, part, differing)


def run(config: TrainConfig, *, resume: bool = False, killed_at: int = 0) -> None:
    """Take the steps of a run, and leave beside its checkpoints the random state and the batch of its last step."""
    step = trainer.Trainer.step

    def watched(self: trainer.Trainer, number: int) -> Any:
        if number == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        record = step(self, number)
        if number == config.steps:
            batch = self.batches.at(number)
            torch.save({"random": torch.get_rng_state(), **batch._asdict()}, Path(config.out) / "end.pt")
        return record

    trainer.Trainer.step = watched  # type: ignore[assignment]
    modules: Any = (trainer, loop, precision)
    modules[0].product_rate = lambda device: 1e9
    modules[1].finish = lambda *_: None
    modules[2].FIRST_SCALE, modules[2].GROWS_AFTER = 2.0**24, 3
    loop.train(config, resume=resume, display=Display(quiet=True))


def forked(work: Callable[[], None]) -> int:
    """The exit code of a process that does some work, or the signal that ended it, below 0."""
    if (child := os.fork()) == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads that OpenMP has started are missing in a forked process
    wanted = json.loads(Path(sys.argv[1]).read_text())
    places = (Path(wanted["texts"]), Path(wanted["work"]))
    for label, settings in wanted["runs"].items():
        compare(*places, label, settings, wanted["before"], wanted["after"])
        print(label, flush=True)
