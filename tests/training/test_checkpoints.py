import os
import shutil
import signal

import pytest
import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.errors import CheckpointError
from prenorm.training.checkpoints import latest_checkpoint, load_checkpoint, read_state, save_checkpoint
from prenorm.training.optimizer import MuonAndAdamW


@pytest.fixture
def parts(tiny):
    """Settings, a model and its optimiser after one step."""
    config = tiny()
    model = TransformerLM(ModelConfig(40, d_model=16, num_layers=1, num_heads=2, max_seq_len=16))
    optimizer = MuonAndAdamW(model, config)
    tokens = torch.arange(9)
    model.loss(tokens[:-1], tokens[1:]).backward()
    optimizer.step(1.0)
    return config, model, optimizer


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_gives_back_what_was_saved_bit_for_bit(parts, tmp_path):
    config, model, optimizer = parts
    save_checkpoint(tmp_path, 7, *parts)
    again = TransformerLM(model.config)
    restored = MuonAndAdamW(again, config)
    folder = latest_checkpoint(tmp_path)
    load_checkpoint(folder, again, restored)
    assert read_state(folder) == (7, config, torch.__version__)
    for before, after in (
        (model.state_dict(), again.state_dict()),
        (optimizer.state_tensors(), restored.state_tensors()),
    ):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_newest_is_found_and_older_ones_are_pruned(parts, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (8, 9, 10, 123_456_789):
        save_checkpoint(tmp_path, step, *parts)
        assert read_state(latest_checkpoint(tmp_path)).step == step
    assert names(tmp_path) == ["step-00000010", "step-123456789"]


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_deleted(parts, tmp_path):
    save_checkpoint(tmp_path, 1, *parts)
    leftover = tmp_path / "checkpoints" / ".step-00000002.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step-00000001"
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("failing", ["model.safetensors", "state.json", "rename"])
def test_a_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(parts, tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, 1, *parts)
    before = (tmp_path / "checkpoints" / "step-00000001" / "model.safetensors").read_bytes()
    replace = os.replace

    def full(source, target):
        if target.name == ("step-00000002" if failing == "rename" else failing):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"step-00000002.*could not be written"):
        save_checkpoint(tmp_path, 2, *parts)
    assert names(tmp_path) == ["step-00000001"]
    assert (tmp_path / "checkpoints" / "step-00000001" / "model.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_model_or_a_broken_one_is_refused(parts, tmp_path):
    config, model, optimizer = parts
    save_checkpoint(tmp_path, 1, *parts)
    folder = latest_checkpoint(tmp_path)
    wider = TransformerLM(ModelConfig(40, d_model=32, num_layers=1, num_heads=2, max_seq_len=16))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_checkpoint(folder, wider, MuonAndAdamW(wider, config))
    (folder / "state.json").write_text('{"step": 1}')
    with pytest.raises(CheckpointError, match=r"state\.json is not that of a checkpoint"):
        read_state(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        load_checkpoint(folder, model, optimizer)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_call_of_a_save_leaves_a_whole_checkpoint(parts, tmp_path):
    config, model, optimizer = parts
    for step in (1, 2):
        save_checkpoint(tmp_path, step, config, model, optimizer)
    expected = {1: None, 2: model.state_dict()["embedding.weight"].clone()}
    with torch.no_grad():
        model.embedding.weight += 1
    expected[3] = model.state_dict()["embedding.weight"].clone()
    seen = []
    for calls in range(100):
        if finished := dies_after(calls, lambda: save_checkpoint(tmp_path, 3, config, model, optimizer)):
            break
        newest = latest_checkpoint(tmp_path)
        seen.append(read_state(newest).step)
        again = TransformerLM(model.config)
        load_checkpoint(newest, again, MuonAndAdamW(again, config))
        assert torch.equal(again.embedding.weight, expected[seen[-1]])
        if seen[-1] == 3:  # so that the next kill meets a save again
            shutil.rmtree(newest)
    assert finished
    assert set(seen) == {2, 3}
    assert len(seen) > 8


def dies_after(calls, work):
    """Do `work` in a process that is killed at a file system call. Gives whether it came to its end before that."""
    if (child := os.fork()) == 0:
        left = iter(range(calls))

        def counted(call):
            def counting(*arguments, **options):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counting

        for name in ("mkdir", "replace", "fsync", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
