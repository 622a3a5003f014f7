import os

import pytest
import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.checkpoint.manifest import MANIFEST, accept
from prenorm.errors import CheckpointError
from prenorm.training.checkpoints import latest_checkpoint, read_parts, read_state, remove_leftovers, save_checkpoint
from prenorm.training.optimizer import MuonAndAdamW


@pytest.fixture
def to_save(tiny):
    """Settings, and the parts and state of a model and its optimiser after one step."""
    config = tiny()
    model = TransformerLM(ModelConfig(40, d_model=16, num_layers=1, num_heads=2, max_seq_len=16))
    optimizer = MuonAndAdamW(model, config)
    tokens = torch.arange(9)
    model.loss(tokens[:-1], tokens[1:]).backward()
    optimizer.step(1.0)
    return (
        config,
        {"threads": 2},
        {"model": model.state_dict(), "optimizer": optimizer.state_tensors()},
        {"skipped": 3, "scale": 0.1},
    )


def assert_equal_parts(before, after):
    assert before.keys() == after.keys()
    for part in before:
        assert before[part].keys() == after[part].keys()
        assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_gives_back_what_was_saved_bit_for_bit(to_save, tmp_path):
    config, environment, parts, state = to_save
    parts = {**parts, "ema": {"a:b": torch.tensor([0.1, float("nan")]), "step": torch.tensor(7)}, "none": {}}
    save_checkpoint(tmp_path, 7, config, environment, parts, state)
    folder = latest_checkpoint(tmp_path)
    saved = read_state(folder)
    restored = read_parts(folder, saved.parts)
    assert saved == (7, config, environment, ("model", "optimizer", "ema", "none"), state)
    assert torch.equal(restored["ema"].pop("a:b").view(torch.int32), parts["ema"].pop("a:b").view(torch.int32))
    assert_equal_parts(parts, restored)


def test_numbers_that_json_cannot_hold_are_not_written(to_save, tmp_path):
    config, environment, parts, _ = to_save
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 7, config, environment, parts, {"scale": float("inf")})
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_is_found_and_older_ones_are_pruned(to_save, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (8, 9, 10, 123_456_789):
        save_checkpoint(tmp_path, step, *to_save)
        assert read_state(latest_checkpoint(tmp_path)).step == step
    assert names(tmp_path) == ["step-00000010", "step-123456789"]


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_deleted(to_save, tmp_path):
    save_checkpoint(tmp_path, 1, *to_save)
    leftover = tmp_path / "checkpoints" / ".step-00000002.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step-00000001"
    assert len(names(tmp_path)) == 2  # it may be that of a writer that lives
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(to_save, tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, 1, *to_save)
    before = (tmp_path / "checkpoints" / "step-00000001" / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(CheckpointError, match=r"step-00000002.*could not be written"):
        save_checkpoint(tmp_path, 2, *to_save)
    assert names(tmp_path) == ["step-00000001"]
    assert (tmp_path / "checkpoints" / "step-00000001" / "model.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_refused_by_name_with_a_way_to_go_on(to_save, tmp_path):
    save_checkpoint(tmp_path, 1, *to_save)
    folder = latest_checkpoint(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=rf"{weights} has [\d,]+ bytes instead of .* Once {folder} is deleted, --resume"
    ):
        read_parts(folder, ["model"])
    state = folder / "state.json"
    state.write_text(state.read_text().replace('"step": 1', '"step": 2'))
    with pytest.raises(CheckpointError, match=rf"{state} has other bytes than were saved"):
        read_state(folder)
    accept(folder)
    assert read_state(folder).step == 2
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=rf"{folder} must have a {MANIFEST}"):
        read_state(folder)


def test_a_state_of_something_else_is_refused(to_save, tmp_path):
    save_checkpoint(tmp_path, 1, *to_save)
    folder = latest_checkpoint(tmp_path)
    (folder / "state.json").write_text('{"step": 1}')
    accept(folder)
    with pytest.raises(CheckpointError, match=r"state\.json is not that of a checkpoint"):
        read_state(folder)
