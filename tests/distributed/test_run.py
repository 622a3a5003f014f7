"""`prenorm train` in several processes is the training of one."""

import functools
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from prenorm import TransformerLM
from prenorm.checkpoint.tensors import read_tensors
from prenorm.training import build, passes, start, trainer
from prenorm.training.checkpoints import latest_checkpoint

from ..costs.cluster.fake_ranks import Peak
from .command import Command, free_port
from .conftest import run_flags

CLOCKS = ("tokens_per_second", "mfu_causal", "mfu_6n_attention")
LAYOUTS = ["--fsdp 2", "--tp 2", "--pp 2", "--dp 2 --tp 2", "--fsdp 2 --pp 2"]


@pytest.fixture(scope="module")
def alone(texts, tmp_path_factory):
    """The folder of the run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    command = Command([*run_flags(texts, folder / "run"), *SAME], 1, folder)
    assert command.codes() == {0: 0}, command.output(0)
    return folder / "run"


SAME = ["--dropout", "0.1", "--ema-decay", "0.5", "--micro-batch-size", "2"]


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def assert_same_losses(run, other, rel=1e-5):
    ours, theirs = records(run), records(other)
    assert len(ours) == len(theirs)
    for one, another in zip(ours, theirs, strict=True):
        assert one == pytest.approx(another, rel=rel)


def assert_all_is_well(command):
    codes = command.codes()
    assert set(codes.values()) == {0}, (codes, *(command.output(rank) for rank in codes))


def test_two_processes_have_the_losses_and_the_model_of_one(alone, flags, tmp_path):
    command = Command([*flags, *SAME], 2, tmp_path)
    assert_all_is_well(command)
    assert_same_losses(tmp_path / "run", alone)
    ours, theirs = (read_tensors(run / "model.safetensors") for run in (tmp_path / "run", alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert command.output(1) == ""
    assert "A sample, after" in command.output(0)
    logs = [(tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert "step 6 of 6" in logs[0]
    assert "step 6 of 6" in logs[1]


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_losses_of_one_process(alone, flags, tmp_path, layout):
    size = math.prod(map(int, layout.split()[1::2]))
    command = Command([*flags, *SAME, *layout.split()], size, tmp_path)
    assert_all_is_well(command)
    assert_same_losses(tmp_path / "run", alone)
    TransformerLM.from_pretrained(tmp_path / "run")
    TransformerLM.from_pretrained(tmp_path / "run" / "ema")


@pytest.mark.long
@pytest.mark.parametrize("layout", ["--fsdp 2", "--dp 2 --fsdp 2", "--fsdp 2 --pp 2"])
def test_a_run_in_bfloat16_has_the_losses_of_one_process_with_the_same_micro_batches(flags, texts, tmp_path, layout):
    same = [*SAME, "--dtype", "bfloat16"]
    alone = Command([*run_flags(texts, tmp_path / "alone"), *same], 1, tmp_path)
    assert_all_is_well(alone)
    size = math.prod(map(int, layout.split()[1::2]))
    command = Command([*flags, *same, *layout.split()], size, tmp_path)
    assert_all_is_well(command)
    assert_same_losses(tmp_path / "run", tmp_path / "alone")


@pytest.mark.long
def test_under_torchrun_interleaved_stages_and_muon_have_the_losses_of_one_process(texts, tmp_path):
    def flags(out):
        given = run_flags(texts, out)
        rate = given.index("--lr")
        sizes = "--num-layers 4 --steps 12 --micro-batch-size 2 --timeout 60 --optimizer muon"
        return [*given[:rate], *given[rate + 2 :], *sizes.split()]

    alone = Command(flags(tmp_path / "alone"), 1, tmp_path)
    assert_all_is_well(alone)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()]
    train = ["-m", "prenorm", "train", *flags(tmp_path / "run"), "--pp", 2, "--pp-stages", 2]
    words = [str(word) for word in (sys.executable, *torchrun, *train)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_losses(tmp_path / "run", tmp_path / "alone", rel=1e-3)
    assert "pp 1" in (tmp_path / "run" / "logs" / "rank-1.log").read_text()


@pytest.mark.long
def test_a_run_whose_blocks_are_shared_says_that_it_does_not_compile_them_and_what_would(flags, tmp_path):
    command = Command([*flags, "--compile", "--tp", 2], 2, tmp_path)
    assert_all_is_well(command)
    assert "with --dp 1 --fsdp 1 --tp 2 --pp 1 processes share them: they are not compiled" in command.output(0)
    assert "--dp 2 alone would compile them" in command.output(0)


def counts_what_is_built(rank):
    """Building a run may take no more than four fifths of the bytes of its model: with a rounded copy it is 3/4."""
    first = trainer.Trainer.__init__

    def building(self, *args, **options):
        with Peak([]) as peak:
            first(self, *args, **options)
        share = peak.bytes / (4 * self.passes.num_parameters)
        assert share < 0.8, share

    trainer.Trainer.__init__ = building


@pytest.mark.long
@pytest.mark.parametrize("layout", ["--fsdp 2", "--pp 2 --micro-batch-size 2", "--fsdp 2 --dtype bfloat16-pure"])
def test_no_process_has_a_new_model_whole(flags, tmp_path, layout):
    command = Command([*flags, "--num-layers", 8, *layout.split()], 2, tmp_path, before=counts_what_is_built)
    assert_all_is_well(command)


def begins_elsewhere(rank, *, victim):
    """Rank `victim` finds other weights in the folder that the run goes on from."""
    found = start.starting_model

    def starting(*args, **options):
        model = found(*args, **options)
        if rank == victim:
            model.final_norm.weight.data.mul_(1.5)
        return model

    vars(build)["starting_model"] = starting


@pytest.mark.long
@pytest.mark.parametrize("layout", ["--fsdp 2", "--tp 2"])
def test_a_run_that_goes_on_from_a_model_has_the_losses_of_one_process_and_one_folder(alone, texts, tmp_path, layout):
    def flags(out):
        return [*run_flags(texts, tmp_path / out), *SAME, "--from", alone]

    assert_all_is_well(Command(flags("one"), 1, tmp_path))
    command = Command([*flags("several"), *layout.split()], 2, tmp_path)
    assert_all_is_well(command)
    assert_same_losses(tmp_path / "several", tmp_path / "one")
    elsewhere = functools.partial(begins_elsewhere, victim=1)
    differing = Command([*flags("differing"), *layout.split()], 2, tmp_path, before=elsewhere)
    assert differing.codes() == {0: 2, 1: 2}
    assert "the hash of the first weights is" in differing.output(0)


def stops_itself(rank, *, victim, step, number):
    """Rank `victim` gets a signal just before it takes a step."""
    before = trainer.Trainer.step

    def stepping(self, now):
        if rank in victim and now == step:
            os.kill(os.getpid(), number)
        return before(self, now)

    trainer.Trainer.step = stepping


def test_a_signal_to_one_process_stops_all_after_one_step_and_another_number_of_processes_goes_on(
    alone, flags, tmp_path
):
    stopping = functools.partial(stops_itself, victim=[1], step=3, number=signal.SIGUSR1)
    command = Command([*flags, *SAME], 2, tmp_path, before=stopping)
    assert command.codes() == {0: 138, 1: 138}, command.output(0)
    assert latest_checkpoint(tmp_path / "run").name == "step-00000003"
    assert "stopped after step 3, with a checkpoint" in command.output(0)
    assert command.output(1) == ""
    resumed = Command([*flags, *SAME, "--resume"], 1, tmp_path)
    assert_all_is_well(resumed)
    assert_same_losses(tmp_path / "run", alone)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_stops_them_after_one_step(flags, tmp_path, number):
    stopping = functools.partial(stops_itself, victim=[0, 1], step=3, number=number)
    command = Command(flags, 2, tmp_path, before=stopping)
    assert command.codes() == {0: 128 + number, 1: 128 + number}, command.output(0)
    assert latest_checkpoint(tmp_path / "run").name == "step-00000003"


def poisons_its_rows(rank, *, victim, step):
    """The loss of rank `victim` is not finite in one step."""
    run = passes.Passes.run

    def running(self, micro_batches, now):
        if rank == victim and now == step:
            micro_batches = [rows._replace(share=math.nan) for rows in micro_batches]
        return run(self, micro_batches, now)

    passes.Passes.run = running


@pytest.mark.long
@pytest.mark.parametrize("on_nan", ["skip", "stop"])
def test_a_loss_that_is_not_finite_in_one_process_is_so_in_all(flags, tmp_path, on_nan):
    poisoned = functools.partial(poisons_its_rows, victim=1, step=3)
    command = Command([*flags, "--on-nan", on_nan], 2, tmp_path, before=poisoned)
    codes = command.codes()
    lines = records(tmp_path / "run")
    if on_nan == "stop":
        assert codes == {0: 2, 1: 2}
        assert "must stay a finite number, but at step 3 it is nan" in command.output(0)
        assert command.output(1) == ""
        assert lines[-1]["step"] == 2
    else:
        assert codes == {0: 0, 1: 0}
        assert [line["step"] for line in lines if "skipped" in line] == [3]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["--seed", "1"], "seed is 0 in rank 0 and 1 in rank 1"),
        pytest.param(["--lr", "0.02"], "lr is 0.01 in rank 0 and 0.02 in rank 1", marks=pytest.mark.long),
    ],
)
def test_processes_of_other_settings_end_all_with_both_values(flags, tmp_path, others, said):
    command = Command(flags, 2, tmp_path, argv_of={1: others})
    assert command.codes() == {0: 2, 1: 2}
    assert said in command.output(0)
    assert command.output(1) == ""
    assert not (tmp_path / "run").exists()


def pretends(rank, *, victim, version):
    if rank == victim:
        torch.__version__ = version


@pytest.mark.long
def test_a_process_with_another_torch_is_named(flags, tmp_path):
    command = Command(flags, 2, tmp_path, before=functools.partial(pretends, victim=1, version="2.11.0"))
    assert command.codes() == {0: 2, 1: 2}
    assert "torch is" in command.output(0)
    assert "'2.11.0' in rank 1" in command.output(0)


def has_threads(rank, *, victim):
    if rank == victim:
        torch.set_num_threads(2)


@pytest.mark.long
def test_a_process_with_other_threads_is_named(flags, tmp_path):
    command = Command(flags, 2, tmp_path, before=functools.partial(has_threads, victim=1))
    assert command.codes() == {0: 2, 1: 2}
    assert "threads is 1 in rank 0 and 2 in rank 1" in command.output(0)
    again = Command(flags, 2, tmp_path)  # what the first one began is undone, but for its logs
    assert_all_is_well(again)


def test_a_layout_that_cannot_be_is_refused_before_anything_starts(flags, tmp_path):
    command = Command([*flags, "--dp", "3"], 2, tmp_path)
    assert command.codes(10) == {0: 2, 1: 2}
    assert "3 x 1 x 1 x 1 = 3, and there are 2" in command.output(0)
    assert not (tmp_path / "run").exists()


def test_several_processes_are_asked_for_where_there_is_one(flags, tmp_path):
    command = Command([*flags, "--tp", "2"], 1, tmp_path)
    assert command.codes(10) == {0: 2}
    assert "torchrun --nproc-per-node 2 -m prenorm train" in command.output(0)
