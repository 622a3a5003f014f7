"""A process of a run that dies or hangs is named by all others, with where it was last, and they end."""

import functools
import os
import signal
import time

import pytest

from prenorm.distributed.group import Group
from prenorm.distributed.heartbeat import LOST
from prenorm.training.checkpoints import complete_checkpoints, read_state

from .command import Command, free_port

TIMEOUT = 4  # seconds; all others must end within it and five seconds more
STEP = 3


def fails(rank, *, victim, phase, how):
    """Rank `victim` dies or hangs when it comes to a phase of step 3."""
    at = Group.at

    def coming(self, step, name, **options):
        at(self, step, name, **options)
        if rank == victim and (step, name) == (STEP, phase):
            how()

    Group.at = coming


def fails_in_a_collective(rank, *, victim, how):
    """Rank `victim` dies or hangs while the others wait for it in a sum over all."""
    reduced, calls = Group._reduced, []

    def reducing(self, *args):
        calls.append(args)
        if rank == victim and len(calls) == 9:
            time.sleep(0.5)
            how()
        return reduced(self, *args)

    Group._reduced = reducing


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def stops():
    os.kill(os.getpid(), signal.SIGSTOP)


def sleeps():
    time.sleep(1000)


def raises():
    raise ValueError("a fault of its own")


def assert_others_name(command, rank, where, *, within):
    """All others end in time, and say which rank it was and where."""
    codes = command.codes(within + 20)
    others = [other for other in codes if other != rank]
    outputs = {other: command.output(other) for other in others}
    assert {codes[other] for other in others} == {LOST}, (codes, outputs)
    for text in outputs.values():
        assert f"Rank {rank} was lost at {where}" in text, text
    return outputs


FORWARD, SAVING = "step 3, forward", "step 2, saving"


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        pytest.param("forward", dies),
        pytest.param("forward", stops),
        pytest.param("forward", sleeps, marks=pytest.mark.long),
        pytest.param("forward", raises, marks=pytest.mark.long),
        pytest.param("backward", dies, marks=pytest.mark.long),
        pytest.param("backward", stops, marks=pytest.mark.long),
        pytest.param("backward", sleeps, marks=pytest.mark.long),
        pytest.param("backward", raises, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_process_that_dies_or_hangs_is_named_by_the_others(flags, tmp_path, victim, phase, how):
    failing = functools.partial(fails, victim=victim, phase=phase, how=how)
    command = Command([*flags, "--timeout", TIMEOUT], 3 if victim else 2, tmp_path, before=failing)
    assert_others_name(command, victim, f"step 3, {phase}", within=TIMEOUT + 5)
    assert read_state(complete_checkpoints(tmp_path / "run")[-1]).step == 2
