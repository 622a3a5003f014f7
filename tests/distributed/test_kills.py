"""kill -9 of any process, at any place of a save: what is left is the checkpoint of one step, and opens."""

import functools
import os
import random
import shutil
import signal
import threading
import time

import pytest
import torch.distributed as dist

from prenorm.checkpoint import manifest
from prenorm.distributed.checkpoints import group_for_checkpoints
from prenorm.distributed.layout import Layout
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import complete_checkpoints, read_parts, read_state
from prenorm.training.config import TrainConfig

from .processes import Ranks, run
from .shared_state import Spread, differing, whole_parts

CONFIG = TrainConfig.from_fields({"preset": "tiny", "keep_checkpoints": 2})
STEPS = range(1, 5)
LAYOUTS = [Layout(fsdp=2), Layout(pp=2), Layout(fsdp=2, tp=2), Layout(dp=2, pp=2)]

# What a process does when it saves: it can be killed before and after each of these, and in the middle of a write.
CALLS = {
    "fsync": (os, "fsync"),
    "mkdir": (os, "mkdir"),
    "rename": (os, "rename"),
    "unlink": (os, "unlink"),
    "rmdir": (os, "rmdir"),
    "write": (manifest._HashingWriter, "write"),
    "all_gather": (dist, "all_gather"),
}


def save_steps(layout, home, victim=None, call=-1, delay=None):
    """Save one step after the other. The victim is killed at a call of its own, counted in halves, or after a time.

    Gives how many halves of calls there were.
    """
    spread, group, count, is_victim = Spread(layout), group_for_checkpoints(30.0), [0], dist.get_rank() == victim

    def at(number):
        if is_victim and number == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(name, function):
        @functools.wraps(function)
        def called(*args, **keywords):
            number = count[0]
            count[0] += 2
            at(number)
            try:
                if name == "write" and is_victim and number + 1 == call:
                    function(args[0], memoryview(args[1]).cast("B")[: len(args[1]) // 2])
                    args[0].raw.flush()
                    return None
                return function(*args, **keywords)
            finally:
                at(number + 1)

        return called

    for name, (owner, attribute) in CALLS.items():
        setattr(owner, attribute, counted(name, getattr(owner, attribute)))
    if is_victim and delay is not None:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    with CheckpointWriter(home, CONFIG, {"threads": 1}, group) as writer:
        for step in STEPS:
            writer.save(step, spread.parts(step), {"seen": [step]})
    return count[0]


def newest_step(home):
    """The newest step of which there is a checkpoint, 0 for none. Each that there is must be that of its step alone."""
    step = 0
    for folder in complete_checkpoints(home):
        state = read_state(folder)
        step = state.step
        assert folder.name == f"step-{step:08d}"
        assert state.trainer == {"seen": [step]}
        assert differing(read_parts(folder, state.parts), whole_parts(step)) == []
    return step


def go_on(layout, home, step):
    """Open what is left, in this layout, and save the step after it."""
    spread, group = Spread(layout), group_for_checkpoints(30.0)
    like = spread.parts(0)["model"]
    if step:
        parts = read_parts(complete_checkpoints(home)[-1], ["model", "optimizer"], like=like, group=group)
        assert differing(parts, spread.parts(step)) == []
    with CheckpointWriter(home, CONFIG, {"threads": 1}, group) as writer:
        writer.save(step + 1, spread.parts(step + 1), {"seen": [step + 1]})


def assert_kills_leave_one_steps_checkpoint(count, home, layouts, seed=0):
    """So many trials; gives the newest steps that were left."""
    draw, newest = random.Random(seed), []
    calls = {layout: run(save_steps, layout.world_size, home, layout, home / "counted") for layout in layouts}
    shutil.rmtree(home / "counted")
    for number in range(count):
        layout = layouts[number % len(layouts)]
        victim = draw.randrange(layout.world_size)
        by_time = draw.random() < 0.2
        call, delay = (-1, draw.random() * 0.3) if by_time else (draw.randrange(calls[layout][victim]), None)
        place = home / f"{number}"
        where = (number, layout, victim, call, delay)
        ranks = Ranks(save_steps, layout.world_size, home, layout, place, victim, call, delay)
        try:
            outcomes = ranks.outcomes()
        finally:
            ranks.kill()
        assert outcomes[victim] == ("died", -signal.SIGKILL) or by_time, (where, outcomes)
        for rank, (kind, what) in enumerate(outcomes):
            lost = kind == "raised" and ("has ended or does not answer" in what or "onnection" in what)
            assert rank == victim or kind == "gave" or lost, (where, rank, kind, what)
        newest.append(newest_step(place))
        other = draw.choice(layouts)
        run(go_on, other.world_size, home, other, place, newest[-1])
        assert newest_step(place) == newest[-1] + 1, where
        assert not list((place / "checkpoints").glob(".*")), where
        shutil.rmtree(place)
    return newest


def test_a_process_that_is_killed_while_it_saves_leaves_the_checkpoint_of_one_step(tmp_path):
    assert_kills_leave_one_steps_checkpoint(2, tmp_path, LAYOUTS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 11), ids=lambda part: f"part-{part}-of-10")
def test_two_hundred_kills_of_any_process_do(tmp_path, part):
    """Twenty in each part, with a seed of its own: `-k "part-3-of-10"` runs the third."""
    newest = assert_kills_leave_one_steps_checkpoint(20, tmp_path, LAYOUTS, seed=part)
    assert len({*newest}) > 2  # they hit different steps


def hang(home):
    """Save while the other process is stopped."""
    spread, group = Spread(Layout(fsdp=2)), group_for_checkpoints(2.0)
    with CheckpointWriter(home, CONFIG, {}, group) as writer:
        writer.save(1, spread.parts(1), {})
        writer.wait()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        writer.save(2, spread.parts(2), {})


@pytest.mark.long
def test_a_process_that_hangs_is_given_up_after_the_timeout(tmp_path):
    start = time.monotonic()
    ranks = Ranks(hang, 2, tmp_path, tmp_path, timeout=8)
    try:
        outcomes = ranks.outcomes()
    finally:
        ranks.kill()
    assert time.monotonic() - start < 12
    assert outcomes[0][0] == "raised"
    assert "ProcessError: preparing a checkpoint: another process has ended or does not answer" in outcomes[0][1]
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["step-00000001"]
