import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from transformers import AutoModelForCausalLM, AutoTokenizer

from prenorm import TransformerLM
from prenorm.checkpoint.tensors import read_tensors
from prenorm.errors import CheckpointError, ConfigError, PrenormError
from prenorm.training.config import TrainConfig, differences, read_toml
from prenorm.training.display import Display
from prenorm.training.loop import train
from prenorm.training.passes import Passes
from prenorm.training.signals import Stopped
from prenorm.training.trainer import Trainer

from .conftest import losses, tiny_config

QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def reference(texts, tmp_path_factory):
    """The run that was never stopped. Tests that change it take a copy."""
    run = tmp_path_factory.mktemp("reference") / "run"
    train(tiny_config(texts, run), display=QUIET)
    return run


@pytest.fixture
def finished(reference, tmp_path):
    """A copy of it."""
    return shutil.copytree(reference, tmp_path / "run")


def assert_same_run(run, reference):
    """The same losses and the same weights, bit for bit."""
    assert losses(run) == losses(reference)
    ours, theirs = read_tensors(run / "model.safetensors"), read_tensors(reference / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def at_step(monkeypatch, number, action):
    """Do something just before a step is taken."""
    step = Trainer.step

    def acting(self, now):
        if now == number:
            action()
        return step(self, now)

    monkeypatch.setattr(Trainer, "step", acting)


def test_a_run_leaves_a_folder_with_all_that_was_promised(reference, tiny):
    records = losses(reference)
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "loss" not in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert all(record.keys() == {"step", "loss", "lr", "grad_norm"} for record in steps)
    assert [(record["step"], record.pop("all_text", False)) for record in evaluations] == [
        (3, False),
        (6, False),
        (6, True),
    ]
    assert all(record.keys() == {"step", "eval_loss", "eval_bits_per_byte"} for record in evaluations)
    assert differences(TrainConfig.from_fields(read_toml(reference / "config.toml")), tiny()).keys() == {"out"}
    assert imread(reference / "loss.png").ndim == 3
    assert sorted(path.name for path in (reference / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    result = json.loads((reference / "result.json").read_text())
    assert result["eval_bits_per_byte"] == evaluations[-1]["eval_bits_per_byte"]
    assert result["gzip_bits_per_byte"] > result["xz_bits_per_byte"] / 2 > 0


def test_the_folder_opens_here_and_with_hugging_face_and_gives_the_same_logits(reference):
    ours = TransformerLM.from_pretrained(reference)
    theirs = AutoModelForCausalLM.from_pretrained(reference)
    token_ids = AutoTokenizer.from_pretrained(reference)("def f(x) :", return_tensors="pt")["input_ids"]
    assert ours.eos_token_ids == (theirs.config.eos_token_id,) == (int(token_ids[0, 0]),)
    torch.testing.assert_close(ours(token_ids), theirs(token_ids).logits, atol=1e-5, rtol=1e-5)


def test_learning_lowers_the_loss(tiny):
    config = tiny(steps=60, dropout=0.0, eval_every=0, checkpoint_every=0)
    result = train(config, display=QUIET)
    first = losses(Path(config.out))[0]["loss"]
    assert result.eval_loss < 0.8 * first


def test_a_run_stopped_by_ctrl_c_goes_on_as_if_it_had_not(tiny, reference, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Stopped, match=r"stopped after step 3, with a checkpoint; prenorm train --out .* --resume"):
            train(tiny(), display=QUIET)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tiny(), resume=True, display=QUIET)
    assert_same_run(Path(tiny().out), reference)


def test_a_killed_run_goes_on_as_if_it_had_not(tiny, reference):
    run = Path(tiny().out)
    script = (
        "from prenorm.training import loop, trainer\nfrom prenorm.training.config import TrainConfig\n"
        "import json, os, signal, sys\n"
        "step = trainer.Trainer.step\n"
        "def dying(self, now):\n"
        "    record = step(self, now)\n"
        "    return record if now < 4 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer.Trainer.step = dying\n"
        "loop.train(TrainConfig.from_fields(json.loads(sys.argv[1])))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, json.dumps(tiny().to_fields())], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert losses(run)[-1]["step"] == 3
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4, "lo')  # as a kill within a write would leave it
    train(tiny(), resume=True, display=QUIET)
    assert_same_run(run, reference)


def test_a_full_disk_stops_the_run_and_loses_nothing(tiny, reference, monkeypatch):
    run = Path(tiny().out)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard)))
        try:
            with pytest.raises(CheckpointError, match="could not be written"):
                train(tiny(), display=QUIET)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    train(tiny(), resume=True, display=QUIET)
    assert_same_run(run, reference)


def test_a_run_killed_while_it_finishes_is_finished_by_resuming(tiny, reference, finished):
    for name in ("result.json", "model.safetensors", "loss.png"):
        (finished / name).unlink()
    train(tiny(), resume=True, display=QUIET)
    assert (finished / "loss.png").exists()
    assert read_tensors(finished / "model.safetensors").keys() == read_tensors(reference / "model.safetensors").keys()
    assert losses(finished)[: len(losses(reference))] == losses(reference)


def test_a_finished_run_says_so_and_changes_nothing(tiny, finished, capsys):
    def files():
        return {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.suffix != ".toml"}

    before = files()
    assert train(tiny(), resume=True, display=Display()).steps == 6
    assert "is finished: all its 6 steps are done" in capsys.readouterr().out
    assert files() == before


def test_more_steps_are_those_of_the_longer_run(tiny, tmp_path):
    level = {"decay_share": 0.0, "eval_every": 0}
    train(tiny(steps=4, **level), display=QUIET)
    train(tiny(steps=6, **level), resume=True, display=QUIET)
    longer = tiny(steps=6, **level, out=str(tmp_path / "longer"))
    train(longer, display=QUIET)
    run = Path(tiny().out)
    ours, theirs = ([record for record in losses(folder) if "loss" in record] for folder in (run, Path(longer.out)))
    assert ours == theirs


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tiny, monkeypatch):
    def break_weights(self, now, step=Trainer.step):
        if now == 4:
            torch.nn.init.constant_(self.model.embedding.weight, float("nan"))
        return step(self, now)

    monkeypatch.setattr(Trainer, "step", break_weights)
    with pytest.raises(PrenormError, match="at step 4 it is nan"):
        train(tiny(), display=QUIET)
    run = Path(tiny().out)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert all(np.isfinite(record["loss"]) for record in losses(run) if "loss" in record)


def test_a_device_that_is_not_there_is_refused_and_the_folder_is_free_again(tiny):
    with pytest.raises(ConfigError, match="device must be one of this machine, but 'abacus' is not"):
        train(tiny(device="abacus"), display=QUIET)
    assert not Path(tiny().out).exists()


# Learning rates with which the first evaluation is the best.
WORSE = {"muon_lr": 5.0, "embedding_lr": 30.0, "head_lr": 20.0, "vector_lr": 5.0}
RESUMED = {
    "float16, average, adamw": {
        "dtype": "float16",
        "num_layers": 1,
        "ema_decay": 0.9,
        "optimizer": "adamw",
        "schedule": "cosine",
        "final_lr_share": 0.1,
        "weight_decay": 0.1,
    },
    "pure bfloat16, early stop, samples": {
        "dtype": "bfloat16-pure",
        "micro_batch_size": 2,
        "early_stop": 9,
        "eval_every": 1,
        **WORSE,
        "schedule": "wsd",
        "sample_every": 2,
        "sample_prompt": "def",
        "checkpoint_activations": True,
    },
}
ALONE = {
    "float16": {"dtype": "float16"},
    "pure bfloat16": {"dtype": "bfloat16-pure"},
    "average": {"ema_decay": 0.9, "dtype": "bfloat16"},
    "adamw": {"optimizer": "adamw", "schedule": "cosine"},
    "early stop": {"early_stop": 9, "eval_every": 1, **WORSE},
    "samples": {"sample_every": 2, "micro_batch_size": 1},
}


@pytest.mark.parametrize(
    "fields",
    [
        *(pytest.param(fields, id=name) for name, fields in RESUMED.items()),
        *(pytest.param(fields, id=name, marks=pytest.mark.long) for name, fields in ALONE.items()),
    ],
)
def test_a_run_that_sigterm_stopped_goes_on_bit_for_bit_with_every_setting(tiny, tmp_path, monkeypatch, fields):
    whole = tiny(out=str(tmp_path / "whole"), **fields)
    result = train(whole, display=QUIET)
    assert "early_stop" not in fields or 0 < result.weights_of_step < 3
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="stopped after step 3"):
            train(tiny(**fields), display=QUIET)
    train(tiny(**fields), resume=True, display=QUIET)
    assert_same_run(Path(tiny().out), Path(whole.out))
    assert_same_checkpoints(Path(tiny().out), Path(whole.out))
    samples = [Path(config.out) / "samples.jsonl" for config in (whole, tiny())]
    assert [path.exists() for path in samples] == [bool("sample_every" in fields)] * 2
    assert "sample_every" not in fields or samples[0].read_text() == samples[1].read_text()


def test_what_is_looked_at_during_a_run_changes_nothing_in_it(tiny, reference):
    looks = {"sample_every": 1, "eval_every": 1, "ema_decay": 0.9, "early_stop": 9, "checkpoint_every": 1}
    train(tiny(**looks), display=QUIET)
    ours, theirs = (max((run / "checkpoints").iterdir()) for run in (Path(tiny().out), reference))
    for name in ("model", "optimizer"):
        tensors, expected = (read_tensors(folder / f"{name}.safetensors") for folder in (ours, theirs))
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    samples = [json.loads(line) for line in (Path(tiny().out) / "samples.jsonl").read_text().splitlines()]
    assert [one["step"] for one in samples] == [1, 2, 3, 4, 5]  # after the last there is the run's own
    assert {"step", "prompt", "text"} == samples[0].keys()


def assert_same_checkpoints(run, reference):
    """The same tensors in every part of the newest checkpoint, and the same state but for the run's folder."""
    ours, theirs = (max((folder / "checkpoints").iterdir()) for folder in (run, reference))
    assert ours.name == theirs.name
    assert [path.name for path in sorted(ours.iterdir())] == [path.name for path in sorted(theirs.iterdir())]
    for path in ours.glob("*.safetensors"):
        tensors, expected = read_tensors(path), read_tensors(theirs / path.name)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in tensors), path
    states = [json.loads((folder / "state.json").read_text())["trainer"] for folder in (ours, theirs)]
    assert states[0] == states[1]


def test_a_run_is_repeated_bit_for_bit_from_its_config_toml(reference, tmp_path):
    fields = read_toml(reference / "config.toml") | {"out": str(tmp_path / "again")}
    train(TrainConfig.from_fields(fields), display=QUIET)
    assert_same_run(tmp_path / "again", reference)
    assert_same_checkpoints(tmp_path / "again", reference)


def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on_from_the_same_weights(tiny, tmp_path, monkeypatch):
    def poisoned(self, batch, step, compute=Passes.add_up_gradients):
        loss = compute(self, batch, step)
        self.model.final_norm.weight.grad[0] = float("nan") if step == 3 else 1.0
        return loss

    monkeypatch.setattr(Passes, "add_up_gradients", poisoned)
    whole = tiny(on_nan="skip", out=str(tmp_path / "whole"))
    result = train(whole, display=QUIET)
    assert result.skipped_steps == 1
    record = losses(Path(whole.out))[2]
    assert record["skipped"] == "not finite"
    assert record.keys() == {"step", "loss", "lr", "skipped"}
    assert np.isfinite(record["loss"])
    assert [path.name for path in (Path(whole.out) / "batches").iterdir()] == ["not-finite-step-00000003.json"]
    with pytest.raises(PrenormError, match="at step 3"):
        train(tiny(checkpoint_every=1), display=QUIET)
    train(tiny(checkpoint_every=1, on_nan="skip"), resume=True, display=QUIET)
    assert_same_run(Path(tiny().out), Path(whole.out))


def test_early_stopping_ends_the_run_and_keeps_the_best_weights(tiny, monkeypatch, capsys):
    scores = iter([3.0, 2.0, 2.5, 2.5, 9.0])
    evaluation = Trainer._evaluation

    def scored(self, step, *arguments):
        return evaluation(self, step, *arguments) | {"eval_loss": next(scores)}

    monkeypatch.setattr(Trainer, "_evaluation", scored)
    config = tiny(early_stop=2, eval_every=1, checkpoint_every=1, keep_checkpoints=9)
    result = train(config, display=Display())
    assert (result.steps, result.early_stop, result.weights_of_step) == (4, 2, 2)
    run = Path(config.out)
    kept = read_tensors(run / "model.safetensors")
    best = read_tensors(run / "checkpoints" / "step-00000002" / "model.safetensors")
    assert torch.equal(kept["lm_head.weight"], best["lm_head.weight"])
    assert not (run / "checkpoints" / "step-00000005").exists()
    assert "has not fallen in 2 evaluations, so the run ends after step 4" in capsys.readouterr().out
    assert train(config, resume=True, display=Display()).steps == 4
    assert "is finished: all its 4 steps are done" in capsys.readouterr().out
    monkeypatch.setattr(Trainer, "_evaluation", evaluation)
    assert train(tiny(eval_every=1, checkpoint_every=1), resume=True, display=QUIET).steps == 6


def test_the_averaged_weights_are_a_folder_of_their_own(tiny):
    config = tiny(ema_decay=0.9)
    result = train(config, display=QUIET)
    run = Path(config.out)
    ema = read_tensors(max((run / "checkpoints").iterdir()) / "ema.safetensors")
    assert torch.equal(TransformerLM.from_pretrained(run / "ema").lm_head.weight, ema["lm_head.weight"])
    assert AutoTokenizer.from_pretrained(run / "ema")("def").input_ids
    assert result.ema_eval_loss != result.eval_loss
    assert all("ema_eval_loss" in record for record in losses(run) if "eval_loss" in record)


def test_ctrl_c_writes_a_checkpoint_and_then_a_sample(tiny, monkeypatch, capsys):
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped):
        train(tiny(eval_every=2, sample_every=2), display=Display())
    output = capsys.readouterr().out
    assert "Ctrl-C: stopped after step 2, with a checkpoint" in output
    assert "it writes, after" in output.partition("Ctrl-C")[2]
    assert "held-out loss" not in output  # was due, and is left to the run that goes on
    assert [path.name for path in (Path(tiny().out) / "checkpoints").iterdir()] == ["step-00000002"]


def test_tensorboard_has_every_number_of_the_metrics_once_also_of_a_run_that_went_on(tiny, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Stopped) as stopped:
            train(tiny(tensorboard=True), display=QUIET)
    assert stopped.value.signal_number == signal.SIGUSR1
    train(tiny(tensorboard=True), resume=True, display=QUIET)
    run = Path(tiny().out)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("loss", "lr", "eval_loss"):
        expected = {record["step"]: record[name] for record in losses(run) if name in record}
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_prompt_that_the_model_has_no_room_for_is_refused_before_the_first_step(tiny):
    with pytest.raises(ConfigError, match=r"sample_prompt must have at most the model's max_seq_len = 16 tokens"):
        train(tiny(sample_prompt="def " * 40), display=QUIET)
    assert not Path(tiny().out).exists()
