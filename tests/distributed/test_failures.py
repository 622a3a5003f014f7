"""A process of a run that dies or hangs is named by all others, with where it was last, and they end."""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prenorm.distributed.group import Group
from prenorm.distributed.heartbeat import LOST, Heartbeat
from prenorm.distributed.launch import Launch, launched
from prenorm.distributed.process_state import is_gone
from prenorm.errors import ConfigError
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import complete_checkpoints, read_state

from .command import Command, free_port

TIMEOUT = 4  # seconds; all others must end within it and five seconds more
LAYOUTS = {"dp": "--dp 2", "fsdp": "--fsdp 2", "tp": "--tp 2", "pp": "--pp 2 --micro-batch-size 2"}


def fails(rank, *, victim, step, phase, how, mark):
    """Rank `victim` dies or hangs when it comes to a phase of a step, and leaves a file that says when."""
    at = Group.at

    def coming(self, now, name, **options):
        at(self, now, name, **options)
        if rank == victim and (now, name) == (step, phase):
            mark.write_text(str(time.time()))
            how()

    Group.at = coming  # type: ignore[assignment]


def fails_while_others_wait(rank, *, victim, how, mark):
    """Rank `victim` dies or hangs while the others are in a sum over all, in step 3 or so."""
    reduced, calls = Group._reduced, []

    def reducing(self, *args):
        calls.append(args)
        if rank == victim and len(calls) == 9:
            time.sleep(0.5)
            mark.write_text(str(time.time()))
            how()
        return reduced(self, *args)

    Group._reduced = reducing


def does(rank, *, what, mark):
    """Each rank does what is named for it, by step and phase, when it comes there; `mark` says when the first did."""
    at = Group.at

    def coming(self, now, name, **options):
        at(self, now, name, **options)
        if act := what.get((rank, now, name)):
            if not mark.exists():
                mark.write_text(str(time.time()))
            act()

    Group.at = coming  # type: ignore[assignment]


def fails_while_others_are_slow_to_tell(rank, *, victim, mark):
    """Rank `victim` hangs; the others take their time from the error of a collective to their word of it."""
    fails(rank, victim=victim, step=3, phase="backward", how=sleeps, mark=mark)
    failed = Group.failed

    def slowly(self, error):
        time.sleep(1)
        return failed(self, error)

    Group.failed = slowly


def fails_in_the_writing(rank, *, victim, how, mark):
    """Rank `victim` dies or hangs in the thread that writes its part of the second checkpoint."""
    wait, calls = CheckpointWriter.save, []

    def saving(self, step, parts, state):
        calls.append(step)
        if rank == victim and len(calls) == 2:
            submit = self._thread.submit

            def failing(*args):
                def work():
                    mark.write_text(str(time.time()))
                    how()

                return submit(work)

            self._thread.submit = failing
        return wait(self, step, parts, state)

    CheckpointWriter.save = saving


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def stops():
    os.kill(os.getpid(), signal.SIGSTOP)


def sleeps():
    time.sleep(1000)


def dies_a_second_later():
    time.sleep(1)
    dies()


def comes_late():
    time.sleep(3)


def is_stopped_for_two_seconds():
    pid = os.getpid()
    if os.fork() == 0:
        time.sleep(2)
        os.kill(pid, signal.SIGCONT)
        os._exit(0)
    stops()


def raises():
    raise ValueError("a fault of its own")


def assert_others_name(command, victim, mark, where):
    """All others end in time, and say which rank it was and where; the victim ends, too."""
    for rank, process in command.processes.items():
        if rank != victim:
            process.join(60)
    seconds = time.time() - float(mark.read_text())
    codes = command.codes(10)
    outputs = {rank: command.output(rank) for rank in codes}
    assert {code for rank, code in codes.items() if rank != victim} == {LOST}, (codes, outputs)
    assert codes[victim] is not None
    for rank, text in outputs.items():
        assert rank == victim or re.search(rf"Rank {victim} was lost at {where}", text), text
    assert seconds < TIMEOUT + 5, outputs
    return outputs


@pytest.mark.parametrize(
    ("how", "victim", "phase"),
    [
        (dies, 1, "forward"),
        *(
            pytest.param(how, victim, phase, marks=pytest.mark.long)
            for how in (dies, stops, sleeps, raises)
            for victim in (0, 1)
            for phase in ("forward", "backward", "saving")
            if (how, victim, phase) != (dies, 1, "forward")
        ),
    ],
)
def test_a_process_that_dies_or_hangs_is_named_by_the_others(flags, tmp_path, how, victim, phase):
    mark, step = tmp_path / "mark", 4 if phase == "saving" else 3
    failing = functools.partial(fails, victim=victim, step=step, phase=phase, how=how, mark=mark)
    command = Command([*flags, "--timeout", TIMEOUT], 4 if victim else 2, tmp_path, before=failing)
    assert_others_name(command, victim, mark, f"step {step}, {phase}")
    steps = [read_state(one).step for one in complete_checkpoints(tmp_path / "run")]
    assert steps in ([2], [])  # it was still being written, perhaps
    log = (tmp_path / "run" / "logs" / f"rank-{1 - victim}.log").read_text()
    assert f"rank {victim} was last at step {step}, {phase}" in log
    assert "this process was at\n" in log


@pytest.mark.long
@pytest.mark.parametrize("how", [dies, stops, sleeps, raises])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_fails_while_others_are_in_a_collective_is_named(flags, tmp_path, how, victim):
    mark = tmp_path / "mark"
    failing = functools.partial(fails_while_others_wait, victim=victim, how=how, mark=mark)
    command = Command([*flags, "--timeout", TIMEOUT], 2, tmp_path, before=failing)
    assert_others_name(command, victim, mark, r"step \d, ")


@pytest.mark.long
@pytest.mark.parametrize("how", [dies, stops])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_fails_while_it_writes_a_checkpoint_is_named(flags, tmp_path, how, victim):
    mark = tmp_path / "mark"
    failing = functools.partial(fails_in_the_writing, victim=victim, how=how, mark=mark)
    command = Command([*flags, "--timeout", TIMEOUT], 2, tmp_path, before=failing)
    assert_others_name(command, victim, mark, r"step \d, ")
    assert read_state(complete_checkpoints(tmp_path / "run")[-1]).step == 2


@pytest.mark.long
def test_one_that_waits_is_not_named_while_its_collective_fails(flags, tmp_path):
    """On a busy machine a second passes between the error of a collective and the word of it."""
    mark = tmp_path / "mark"
    failing = functools.partial(fails_while_others_are_slow_to_tell, victim=1, mark=mark)
    command = Command([*flags, "--timeout", TIMEOUT], 4, tmp_path, before=failing)
    assert_others_name(command, 1, mark, "step 3, backward")


@pytest.mark.long
def test_one_that_came_late_is_not_named_for_one_that_hangs(flags, tmp_path):
    """The collective of the others fails seconds before its own does, and DDP's waiting does not show in Python."""
    mark = tmp_path / "mark"
    what = {(3, 3, "backward"): sleeps, (1, 3, "backward"): comes_late}
    command = Command([*flags, "--timeout", TIMEOUT], 4, tmp_path, before=functools.partial(does, what=what, mark=mark))
    assert_others_name(command, 3, mark, "step 3, backward")


@pytest.mark.long
def test_of_two_that_fail_one_is_named_by_all_and_neither_is_left(flags, tmp_path):
    mark = tmp_path / "mark"
    what = {(1, 3, "backward"): stops, (2, 3, "backward"): dies_a_second_later}
    command = Command([*flags, "--timeout", TIMEOUT], 4, tmp_path, before=functools.partial(does, what=what, mark=mark))
    for rank in (0, 1, 3):
        command.processes[rank].join(30)
    assert command.codes(0) == {0: LOST, 1: -signal.SIGKILL, 2: -signal.SIGKILL, 3: LOST}
    assert time.time() - float(mark.read_text()) < TIMEOUT + 5
    for rank in (0, 3):
        assert "Rank 2 was lost at step 3, backward" in command.output(rank)


def hears_late(rank, *, what, mark):
    """Rank 3 hears of no last word, and looks for others only when all of them have ended."""
    does(rank, what=what, mark=mark)
    if rank == 3:
        read, judge = Heartbeat._read, Heartbeat._judge

        def reading(self):
            read(self)
            self._word = None

        def judging(self):
            if any(is_gone(seen.who, self._here) for seen in self._seen):
                time.sleep(3)
            judge(self)

        Heartbeat._read, Heartbeat._judge = reading, judging


@pytest.mark.long
def test_one_that_finds_all_others_gone_names_the_one_because_of_which_they_ended(flags, tmp_path):
    mark = tmp_path / "mark"
    what = {(2, 3, "backward"): dies}
    failing = functools.partial(hears_late, what=what, mark=mark)
    command = Command([*flags, "--timeout", TIMEOUT], 4, tmp_path, before=failing)
    assert_others_name(command, 2, mark, "step 3, backward")


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_stopped_for_less_than_the_timeout_is_not_lost(flags, tmp_path, rank):
    mark = tmp_path / "mark"
    what = {(rank, 3, "backward"): is_stopped_for_two_seconds, (rank, 6, "saving"): is_stopped_for_two_seconds}
    command = Command([*flags, "--timeout", TIMEOUT], 2, tmp_path, before=functools.partial(does, what=what, mark=mark))
    assert set(command.codes().values()) == {0}, command.output(0)


@pytest.mark.long
def test_one_that_hangs_while_it_writes_the_model_is_named(flags, tmp_path):
    mark = tmp_path / "mark"
    what = {(0, 6, "saving the model"): sleeps}
    command = Command([*flags, "--timeout", TIMEOUT], 2, tmp_path, before=functools.partial(does, what=what, mark=mark))
    assert_others_name(command, 0, mark, "step 6, saving the model")


@pytest.mark.long
@pytest.mark.parametrize("axis", ["fsdp", "tp", "pp"])
@pytest.mark.parametrize("how", [dies, stops])
def test_it_is_so_for_every_axis(flags, tmp_path, axis, how):
    mark = tmp_path / "mark"
    phase = "forward and backward in the pipeline" if axis == "pp" else "backward"
    failing = functools.partial(fails, victim=1, step=3, phase=phase, how=how, mark=mark)
    command = Command([*flags, "--timeout", TIMEOUT, *LAYOUTS[axis].split()], 2, tmp_path, before=failing)
    assert_others_name(command, 1, mark, f"step 3, {phase}")


@pytest.mark.long
def test_an_error_of_one_process_is_shown_by_it_and_told_by_the_others(flags, tmp_path):
    mark = tmp_path / "mark"
    failing = functools.partial(fails, victim=1, step=3, phase="forward", how=raises, mark=mark)
    command = Command([*flags, "--timeout", TIMEOUT], 2, tmp_path, before=failing)
    outputs = assert_others_name(command, 1, mark, "step 3, forward: it ended with ValueError: a fault of its own")
    assert "Traceback" in outputs[1]
    assert "Traceback" not in outputs[0]
    assert "ValueError: a fault of its own" in (tmp_path / "run" / "logs" / "rank-1.log").read_text()


@pytest.mark.long
def test_a_process_that_does_not_come_is_named(flags, tmp_path):
    command = Command([*flags, "--timeout", 2], 4, tmp_path, ranks=[0, 1, 3])
    assert command.codes(20) == {0: 2, 1: 2, 3: 2}
    for rank in (0, 1, 3):
        assert "all 4 processes must come within 2 s, but rank 2 did not" in command.output(rank)


@pytest.mark.long
def test_two_processes_of_one_rank_are_named(flags, tmp_path):
    command = Command([*flags, "--timeout", 3], 4, tmp_path, environ={2: {"RANK": "1"}})
    assert set(command.codes(20).values()) == {2}
    assert "two of them are rank 1" in command.output(1) + command.output(2)


@pytest.mark.long
def test_a_wrong_address_is_explained(flags, tmp_path):
    command = Command([*flags, "--timeout", 2], 2, tmp_path, environ={1: {"MASTER_PORT": str(free_port())}})
    assert set(command.codes(20).values()) == {2}
    assert "rank 1 must reach rank 0 at 127.0.0.1:" in command.output(1)
    assert "but rank 1 did not" in command.output(0)


@pytest.mark.long
def test_a_port_that_is_taken_is_explained(flags, tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = {rank: {"MASTER_PORT": port} for rank in range(2)}
        command = Command([*flags, "--timeout", 3], 2, tmp_path, environ=variables)
        assert command.codes(20) == {0: 2, 1: 2}
    assert f"rank 0 must listen on port {port} of its machine, but another program has it" in command.output(0)
    assert f"must reach rank 0 at 127.0.0.1:{port}" in command.output(1)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RANK": "7"}, "RANK must be below WORLD_SIZE, but they are 7 and 2"),
        ({"RANK": "first"}, "RANK must be an integer of at least 0, not 'first'"),
        ({"MASTER_ADDR": ""}, "but MASTER_ADDR is not set"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT must be a port"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be an integer of at least 1, not '0'"),
    ],
)
def test_variables_that_cannot_be_are_refused(environ, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        launched({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", **environ})


def test_a_rank_without_a_world_is_refused_and_a_world_of_one_is_alone():
    with pytest.raises(ConfigError, match="must have a WORLD_SIZE"):
        launched({"RANK": "0"})
    assert launched({}) == launched({"RANK": "0", "WORLD_SIZE": "1"}) == Launch()


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_under_torchrun_nobody_is_left_behind(flags, tmp_path, how):
    number = signal.SIGKILL if how == "kill" else signal.SIGSTOP
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()]
    words = [sys.executable, *torchrun, "-m", "prenorm", "train", *flags, "--steps", 100_000, "--timeout", TIMEOUT]
    agent = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    log = tmp_path / "run" / "logs" / "rank-1.log"
    for _ in range(600):
        time.sleep(0.1)
        if log.exists() and "step 3 of" in log.read_text():
            break
    children = [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(agent.pid)], text=True).split()]
    ranks = [pid for pid in children if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    os.kill(ranks[0], number)
    start = time.monotonic()
    output, _ = agent.communicate(timeout=60)
    assert time.monotonic() - start < TIMEOUT + 8, output  # the agent itself takes a second or two to end
    assert agent.returncode == 1
    assert "Rank 1 was lost at step " in output
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
