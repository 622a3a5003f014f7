"""Saves that are killed, cut off from power, or met by a disk's faults: what is left must be one of what was saved.

`python -m tests.faults.saves kills=100 cuts=100 faults=100`, started with the shim (shim.py), is one warm process: each
trial of a kill is a process forked from it. Prints how the trials ended.
"""

import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from prenorm import ModelConfig
from prenorm.checkpoint.folder import load, save
from prenorm.checkpoint.names import parameters_of
from prenorm.checkpoint.writing import config_to_hugging_face, weights_to_hugging_face
from prenorm.errors import CheckpointError
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import latest_checkpoint, read_parts, read_state, remove_leftovers, save_checkpoint
from prenorm.training.config import TrainConfig

from .disk import Disk
from .shim import armed, read_trace

CHANCES = 48  # ways in which a power cut keeps some of what was not synced; in the first two all data of that is lost
REFUSALS = r"files must be as they were saved|must have been saved together"


class Case(NamedTuple):
    """A save over what was there before, and what may be left."""

    prepare: Callable[[Path], None]
    save: Callable[[Path], None]
    found: Callable[[Path], str]  # "old", "new" or "refused"; AssertionError for a mixture or a mess
    whole: bool  # a refusal is none of what may be left


RUN = TrainConfig.from_fields({"preset": "tiny", "keep_checkpoints": 2})


def parts_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Every number is that of the step. The first tensor takes several writes."""
    number = float(step)
    model = {"w": torch.full((50, 70), number), "b": torch.full((3,), number)}
    return {"model": model, "optimizer": {"w:step": torch.tensor(number)}}


def save_step(run: Path, step: int) -> None:
    save_checkpoint(run, step, RUN, {"threads": 1}, parts_of(step), {"step": step})


def save_step_3_beside(run: Path) -> None:
    with CheckpointWriter(run, RUN, {"threads": 1}) as writer:
        writer.save(3, parts_of(3), {"step": 3})


def newest_step(run: Path) -> str:
    """Which of the two newest steps there is. All that looks like a checkpoint is exactly one step's."""
    steps = []
    for folder in (run / "checkpoints").glob("step-*"):
        state = read_state(folder)
        assert folder.name == f"step-{state.step:08d}"
        assert state.trainer == {"step": state.step}
        restored, saved = read_parts(folder, state.parts), parts_of(state.step)
        assert {part: set(tensors) for part, tensors in restored.items()} == {
            part: set(tensors) for part, tensors in saved.items()
        }
        assert all(torch.equal(restored[part][name], saved[part][name]) for part in saved for name in saved[part])
        steps.append(state.step)
    newest = latest_checkpoint(run)
    assert (0 if newest is None else read_state(newest).step) == max(steps, default=0)
    return "new" if max(steps, default=0) == 3 else "old"


def steps_before(*steps: int) -> Callable[[Path], None]:
    def prepare(run: Path) -> None:
        for step in steps:
            save_step(run, step)

    return prepare


def step_3(run: Path) -> None:
    remove_leftovers(run)
    save_step(run, 3)


OLD, NEW = (ModelConfig(40, d_model=8, num_layers=1, num_heads=2, d_ff=12, eps=eps) for eps in (1e-6, 1e-5))


def tensors_of(config: ModelConfig, number: float) -> dict[str, torch.Tensor]:
    return {parameter.name: torch.full(parameter.shape, number) for parameter in parameters_of(config)}


def save_model(config: ModelConfig, number: float) -> Callable[[Path], None]:
    return lambda folder: save(folder, config, tensors_of(config, number), eos_token_ids=(3,))


def save_with_settings(folder: Path) -> None:
    """With a generation_config.json, a third file of the save."""
    save_model(OLD, 1.0)(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    save_model(OLD, 1.0)(folder)


def save_as_others_do(folder: Path) -> None:
    """In two shards, and without a manifest."""
    fields = config_to_hugging_face(OLD)
    stored = weights_to_hugging_face(OLD, tensors_of(OLD, 1.0), fields)
    names, weight_map = sorted(stored), {}
    for number, part in enumerate((names[:4], names[4:]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: stored[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(fields))


def save_below(folder: Path) -> None:
    save_model(NEW, 2.0)(folder / "new" / "model")


def model_below(folder: Path) -> str:
    """Where there was none before: "old" is none."""
    if not (folder / "new" / "model" / "config.json").exists():
        return "old"
    try:
        return model_in(NEW)(folder / "new" / "model")
    except CheckpointError as error:
        if "weights must be in model.safetensors" in str(error):
            return "refused"
        raise


def model_in(new: ModelConfig) -> Callable[[Path], str]:
    def found(folder: Path) -> str:
        try:
            loaded = load(folder)
        except CheckpointError as error:
            if re.search(REFUSALS, str(error)):
                return "refused"
            raise
        for name, config, number in (("old", OLD, 1.0), ("new", new, 2.0)):
            if loaded.config == config and all(bool((one == number).all()) for one in loaded.tensors.values()):
                return name
        raise AssertionError("a mixture of two models was loaded")

    return found


CASES = {
    "a checkpoint, and one is pruned": Case(steps_before(1, 2), step_3, newest_step, whole=True),
    "the first checkpoint": Case(lambda run: None, step_3, newest_step, whole=True),
    "a checkpoint beside training": Case(steps_before(1, 2), save_step_3_beside, newest_step, whole=True),
    "a model over one of the same sizes": Case(save_with_settings, save_model(OLD, 2.0), model_in(OLD), whole=False),
    "a model over another": Case(save_model(OLD, 1.0), save_model(NEW, 2.0), model_in(NEW), whole=False),
    "a model where there was none": Case(lambda folder: None, save_below, model_below, whole=False),
    "a model over one of others": Case(save_as_others_do, save_model(NEW, 2.0), model_in(NEW), whole=False),
}


def places(case: Case) -> tuple[Path, int]:
    """A folder as it is before the save, and how many calls the save makes."""
    before = Path(tempfile.mkdtemp())
    case.prepare(before)
    with armed() as counted:
        case.save(fresh(before))
    return before, counted[0]


def fresh(before: Path) -> Path:
    place = before.with_name("trial")
    shutil.rmtree(place, ignore_errors=True)
    return shutil.copytree(before, place)


def kills(count: int) -> Counter[str]:
    """A SIGKILL before a call of a save, or in the middle of it (half of a write), for each in a drawn order."""
    ended: Counter[str] = Counter()
    prepared = {name: places(case) for name, case in CASES.items()}
    every = [
        (name, number, fault)
        for name, (_, calls) in prepared.items()
        for number in range(calls + 1)
        for fault in ("KILL_BEFORE", "KILL_AFTER")
    ]
    draw = random.Random(0)
    rounds = range(1 + count // len(every))
    trials = [trial for _ in rounds for trial in draw.sample(every, len(every))][:count]
    for name, number, fault in trials:
        case, place = CASES[name], fresh(prepared[name][0])
        if (child := os.fork()) == 0:
            with armed(number, fault):
                case.save(place)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), (name, number, fault, status)
        ended[judge(case, place, done=status == 0)] += 1
        case.save(place)
        assert case.found(place) == "new", (name, number, fault)
        assert not leftovers(place), (name, number, fault, leftovers(place))
    assert len(every) > 300
    return ended


def cuts(count: int) -> Counter[str]:
    """A power cut after a call of a save, with all lost that was not synced, or some of it kept by chance."""
    ended: Counter[str] = Counter()
    draw = random.Random(0)
    for case in CASES.values():
        before, _ = places(case)
        place, trace = fresh(before), before.with_name("trace")
        disk = Disk(place)
        with open(trace, "wb") as file, armed(trace=file.fileno()):
            case.save(place)
        recorded = read_trace(trace)
        assert {call.name for call in recorded} >= {"OPEN", "WRITE", "SYNC", "RENAME"}
        every = [(number, chance) for number in range(len(recorded) + 1) for chance in range(CHANCES)]
        drawn = {*draw.sample(every, -(-count // len(CASES))), (len(recorded), 0)}
        for number, chance in every:
            if chance == 0 and number > 0:
                disk.play(recorded[number - 1])
            if (number, chance) in drawn:
                left = before.with_name("left")
                shutil.rmtree(left, ignore_errors=True)
                disk.cut(left, random.Random(chance) if chance > 1 else None, names=chance == 1)
                ended[judge(case, left, done=number == len(recorded))] += 1
    return ended


# Which calls fail on a full disk, on one that has become read-only, and on a broken one.
FAULTS = {
    errno.ENOSPC: "OPEN WRITE SYNC MKDIR",
    errno.EDQUOT: "OPEN WRITE SYNC MKDIR",
    errno.EROFS: "OPEN WRITE SYNC MKDIR RENAME UNLINK RMDIR",
    errno.EIO: "OPEN WRITE SYNC MKDIR RENAME UNLINK RMDIR",
}


def faults(count: int) -> Counter[str]:
    """An error from a call of a save on, or of that call alone, and writes that take a few bytes only."""
    ended: Counter[str] = Counter()
    draw = random.Random(0)
    prepared = {name: places(case) for name, case in CASES.items()}
    for name, (before, _) in prepared.items():
        place = fresh(before)
        with armed(longest=777):
            CASES[name].save(place)
        assert CASES[name].found(place) == "new"
    for _ in range(count):
        name = draw.choice(list(CASES))
        before, calls = prepared[name]
        case, place, number = CASES[name], fresh(before), draw.randrange(calls)
        error, fault = draw.choice(list(FAULTS)), draw.choice(("FAIL_ONCE", "FAIL_ALWAYS"))
        raised = None
        with armed(number, fault, error=error, failing=FAULTS[error], longest=draw.choice((0, 777))):
            try:
                case.save(place)
            except CheckpointError as failure:
                raised = str(failure)
        where = (name, number, error, fault, raised)
        assert raised is None or "could not be written" in raised, where
        found = judge(case, place, done=raised is None)
        if "SYNC" in FAULTS[error] and "RENAME" not in FAULTS[error] and raised and case.whole:
            assert not leftovers(place), where
        ended["no error" if raised is None else f"an error, {found}"] += 1
        case.save(place)
        assert case.found(place) == "new", where
        assert not leftovers(place), where
    return ended


def leftovers(place: Path) -> list[str]:
    return [path.name for path in place.rglob(".*")]


def judge(case: Case, place: Path, *, done: bool) -> str:
    """What is left; AssertionError where it may not be."""
    found = case.found(place)
    assert found in (("new",) if done else ("old", "new") if case.whole else ("old", "new", "refused")), found
    return found


if __name__ == "__main__":
    wanted = dict(word.split("=") for word in sys.argv[1:])
    os.umask(0o022)
    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp())
    tempfile.tempdir = str(home)
    try:
        print(json.dumps({kind: globals()[kind](int(count)) for kind, count in wanted.items()}))
    finally:
        shutil.rmtree(home)
