import os
from pathlib import Path

import pytest

from prenorm.checkpoint.files import read_json
from prenorm.errors import ConfigError, DataError
from prenorm.locks import lock
from prenorm.training.checkpoints import save_checkpoint
from prenorm.training.config import RUN_FIELDS, TrainConfig, read_toml
from prenorm.training.run_folder import FREE, open_run, record, undone_on_failure


def opened(config, *, resume, say=lambda _: None):
    with open_run(config, resume=resume, say=say) as run:
        return run


def checkpoint_at(step, config):
    save_checkpoint(opened(config, resume=True).folder, step, config, {}, {}, {})


def test_a_new_folder_gets_the_settings_and_starts_from_nothing(tiny):
    config = tiny()
    run = opened(config, resume=False)
    assert run.fresh
    assert run.checkpoint is None
    assert TrainConfig.from_fields(read_toml(run.folder / "config.toml")) == config


def test_a_folder_with_a_run_is_refused_and_both_ways_out_are_named(tiny):
    opened(tiny(), resume=False)
    with pytest.raises(ConfigError, match=r"holds a run already: go on with it by --resume, or choose another --out"):
        opened(tiny(), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_things_and_a_file_are_refused(tiny, tmp_path, resume):
    (tmp_path / "file").write_text("x")
    for out, message in (
        (tmp_path, "holds other things"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "run cannot: Not a directory; choose another --out"),
    ):
        with pytest.raises(ConfigError, match=message):
            opened(tiny(out=str(out)), resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resuming_without_a_checkpoint_starts_from_the_beginning_and_says_so(tiny, said):
    for _ in range(2):  # nothing there; then a run that was stopped before its first checkpoint
        assert opened(tiny(), resume=True, say=said.append).checkpoint is None
        assert "no checkpoint in" in said.pop()


def test_resuming_finds_the_newest_checkpoint(tiny):
    checkpoint_at(2, tiny())
    checkpoint_at(4, tiny())
    run = opened(tiny(), resume=True)
    assert run.checkpoint.name == "step-00000004"
    assert not run.fresh


def test_contradicting_settings_are_refused_by_name_with_both_values(tiny):
    checkpoint_at(2, tiny())
    with pytest.raises(ConfigError) as raised:
        opened(tiny(seed=3, d_model=32, d_ff=64, head_dim=8, data=["elsewhere"]), resume=True)
    for part in ("seed is 0 there and 3 here", "d_model is 16 there and 32 here", "data is", "leave that out"):
        assert part in str(raised.value)
    assert "d_ff" not in str(raised.value)


OTHER = {
    "data": ["elsewhere"],
    "data_weights": [1.0],
    "tokenizer": "other.json",
    "start_from": "other",
    "optimizer": "adamw",
    "short_context": 4,
    "micro_batch_size": 1,
    "schedule": "cosine",
    "device": "cpu",
    "dtype": "bfloat16-pure",
    "compile": True,
}


@pytest.mark.parametrize("name", sorted(RUN_FIELDS.keys() - FREE - {"lr", "preset"}))
def test_every_setting_that_changes_numbers_is_refused_by_name(tiny, name):
    checkpoint_at(2, tiny())
    value = getattr(tiny(), name)
    if name in OTHER:
        value = OTHER[name]
    elif isinstance(value, float):
        value = value / 2 + 0.013
    elif isinstance(value, tuple):
        value = [one / 2 for one in value]
    else:
        value += value + 2
    with pytest.raises(ConfigError, match=rf"\b{name} is .* there and .* here"):
        opened(tiny(**{name: value}), resume=True)


def test_settings_that_touch_no_weights_may_change(tiny):
    checkpoint_at(2, tiny())
    changed = tiny(
        checkpoint_every=1,
        keep_checkpoints=9,
        eval_every=1,
        log_seconds=1.0,
        checkpoint_activations=True,
        checkpoint_activations_every=2,
        on_nan="skip",
        early_stop=3,
        sample_every=5,
        sample_prompt="def",
        tensorboard=True,
    )
    run = opened(changed, resume=True)
    assert TrainConfig.from_fields(read_toml(run.folder / "config.toml")) == tiny()
    record(run, changed, {"threads": 2})
    assert read_json(run.folder / "environment.json") == {"threads": 2}
    assert TrainConfig.from_fields(read_toml(run.folder / "config.toml")) == changed


def test_another_layout_may_have_other_micro_batches(tiny):
    checkpoint_at(2, tiny())
    opened(tiny(pp=2, micro_batch_size=1), resume=True)


def test_steps_may_change_while_every_step_taken_had_the_same_learning_rate(tiny):
    checkpoint_at(3, tiny(steps=10, decay_share=0.3))
    opened(tiny(steps=20, decay_share=0.3), resume=True)
    opened(tiny(steps=10, decay_share=0.3), resume=True)
    with pytest.raises(ConfigError, match="steps is 10 there and 3 here"):
        opened(tiny(steps=3, decay_share=0.3), resume=True)


def test_a_config_file_edited_by_hand_does_not_deceive(tiny):
    checkpoint_at(2, tiny())
    path = opened(tiny(), resume=True).folder / "config.toml"
    path.write_text(path.read_text().replace("muon_lr = 0.02", "muon_lr = 0.5"))
    with pytest.raises(ConfigError, match=r"step-00000002, but muon_lr is 0\.02 there and 0\.5 here"):
        opened(tiny(muon_lr=0.5), resume=True)


def test_two_processes_never_train_in_one_folder(tiny):
    with (
        open_run(tiny(), resume=False, say=lambda _: None),
        pytest.raises(ConfigError, match="another process is training in"),
    ):
        opened(tiny(), resume=True)
    opened(tiny(), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_was_killed_while_it_wrote_the_settings_can_be_repeated(tiny, resume):
    folder = Path(tiny().out)
    folder.mkdir()
    (folder / ".config.toml.67067fa4.tmp").write_text("half")
    assert opened(tiny(), resume=resume).fresh
    assert [path.name for path in folder.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_process_that_has_just_begun_is_said_to_be_there(tiny, resume):
    folder = Path(tiny().out)
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, wait=False)
        (folder / ".data.tmp").mkdir()
        with pytest.raises(ConfigError, match="another process is training in"):
            opened(tiny(), resume=resume)
    finally:
        os.close(descriptor)


def test_a_set_up_that_fails_can_be_repeated_and_takes_nobodys_files(tiny):
    def fail(mine):
        with open_run(tiny(), resume=False, say=lambda _: None) as run, undone_on_failure(run):
            (run.folder / "data").mkdir()
            for name in ("train-00000.npy", *mine):
                (run.folder / "data" / name).write_bytes(b"x")
            raise DataError("no text")

    folder = Path(tiny().out)
    for _ in range(2):
        with pytest.raises(DataError):
            fail(mine=[])
        assert not folder.exists()
    with pytest.raises(DataError):
        fail(mine=["mine.txt"])
    assert [path.name for path in folder.rglob("*")] == ["data", "mine.txt"]


def test_a_resumed_run_whose_set_up_fails_keeps_everything(tiny):
    opened(tiny(), resume=False)
    with pytest.raises(DataError), open_run(tiny(), resume=True, say=lambda _: None) as run, undone_on_failure(run):
        raise DataError("no text")
    assert (run.folder / "config.toml").exists()


def test_a_number_that_no_run_has_is_told_with_the_file_that_it_stands_in(tiny):
    file = opened(tiny(), resume=False).folder / "config.toml"
    file.write_text(file.read_text().replace("d_model = ", "d_model = -"))
    with pytest.raises(ConfigError, match=rf"^{file}: d_model must be an integer of at least 1, not -\d+"):
        opened(tiny(), resume=True)
