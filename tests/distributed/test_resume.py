"""A run goes on in one layout after another: with what was saved, bit for bit, and to the losses of one process."""

import functools
import json
import math
import os
import signal

import pytest

from prenorm import TransformerLM
from prenorm.training import trainer
from prenorm.training.checkpoint_writer import CheckpointWriter
from prenorm.training.checkpoints import latest_checkpoint, read_parts, read_state

from .command import Command
from .conftest import run_flags
from .shared_state import differing

LAYOUTS = ["--dp 2", "--tp 2", "--pp 2", "--fsdp 2 --tp 2", "--dp 2 --pp 2", "--fsdp 4", "", "--tp 2 --pp 2"]


def saves_again_and_stops(rank, *, again, step):
    """Save what was opened into another folder, at once; stop after `step`, unless it is the last."""
    take, restore = trainer.Trainer.step, trainer.Trainer.restore

    def restoring(self, parts, state):
        restore(self, parts, state)
        with CheckpointWriter(again, self.config, {}, self.group) as writer:
            writer.save(step - 1, *self.to_save())

    def stepping(self, now):
        if rank == 0 and now == step < self.config.steps:
            os.kill(os.getpid(), signal.SIGUSR1)
        return take(self, now)

    trainer.Trainer.restore, trainer.Trainer.step = restoring, stepping


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "eval_loss", "ema_eval_loss") if name in line]


@pytest.mark.long
@pytest.mark.parametrize(("optimizer", "agreement"), [("adamw", 1e-5), ("muon", 1e-3)])
def test_a_run_goes_on_in_any_layout_with_what_was_saved_in_another(texts, tmp_path, optimizer, agreement):
    run, again = tmp_path / "run", tmp_path / "again"
    same = f"--optimizer {optimizer} --steps {len(LAYOUTS)} --ema-decay 0.5 --early-stop 9 --micro-batch-size 2".split()

    def flags(out):
        given = [*run_flags(texts, out), *same]
        place = given.index("--lr")
        return given if optimizer == "adamw" else given[:place] + given[place + 2 :]

    alone = Command(flags(tmp_path / "alone"), 1, tmp_path)
    assert alone.codes() == {0: 0}, alone.output(0)
    for step, layout in enumerate(LAYOUTS, start=1):
        size = math.prod(map(int, layout.split()[1::2]))
        before = functools.partial(saves_again_and_stops, again=again, step=step)
        resume = [] if step == 1 else ["--resume"]
        command = Command([*flags(run), *layout.split(), *resume], size, tmp_path, before=before)
        expected = 0 if step == len(LAYOUTS) else 138
        assert command.codes() == dict.fromkeys(range(size), expected), (layout, command.output(0))
        if step > 1:
            saved, opened = (each / "checkpoints" / f"step-{step - 1:08d}" for each in (run, again))
            assert read_state(saved).trainer == read_state(opened).trainer
            parts = [read_parts(each, read_state(each).parts) for each in (saved, opened)]
            assert {"model", "optimizer", "ema"} <= parts[0].keys()
            assert differing(*parts) == [], layout
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=agreement)
    whole = read_parts(latest_checkpoint(run), ["model"])
    model = TransformerLM.from_pretrained(run)
    assert differing({"model": dict(model.state_dict())}, whole) == []
