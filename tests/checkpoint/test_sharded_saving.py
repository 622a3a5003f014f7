"""Models saved in several files: transformers opens them, a crash never leaves a mixture, no old file stays behind."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from prenorm import EncoderDecoder, EncoderDecoderConfig, TransformerLM
from prenorm.checkpoint.folder import load, save
from prenorm.errors import CheckpointError, ConfigError

from .examples import config, equal, tensors_of
from .families import folder_of

logging.disable_progress_bar()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text", "qwen2"])
@pytest.mark.parametrize("theirs", ["8KB", "1GB"])
def test_a_folder_is_opened_and_saved_in_shards_of_any_size_with_the_same_tensors(name, theirs, tmp_path):
    came = folder_of(name, tmp_path / theirs, max_shard_size=theirs)
    ours = TransformerLM.from_pretrained(came)
    ours.save_pretrained(tmp_path / "out", max_shard_size="10KB")
    shards = [one for one in names_in(tmp_path / "out") if one.startswith("model-")]
    assert len(shards) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {*shards}
    models = [AutoModelForCausalLM.from_pretrained(one, output_loading_info=True) for one in (came, tmp_path / "out")]
    assert not any(models[1][1].values())
    states = [model.state_dict() for model, _ in models]
    assert equal(*states)
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for key, tensor in states[0].items() if key in index["weight_map"]
    )
    assert equal(TransformerLM.from_pretrained(tmp_path / "out").state_dict(), ours.state_dict())


@pytest.mark.parametrize(("before", "after"), [(None, "3KB"), ("3KB", None), ("3KB", "6KB"), ("3KB", "3KB")])
def test_no_file_of_an_earlier_save_stays(tmp_path, before, after):
    save(tmp_path / "model", config(), tensors_of(config()), max_shard_size=before)
    save(tmp_path / "model", config(), tensors_of(config(), seed=1), max_shard_size=after)
    save(tmp_path / "fresh", config(), tensors_of(config(), seed=1), max_shard_size=after)
    assert names_in(tmp_path / "model") == names_in(tmp_path / "fresh")
    assert equal(load(tmp_path / "model").tensors, tensors_of(config(), seed=1))


@pytest.mark.parametrize("before", [None, "3KB"])
@pytest.mark.parametrize("after", [None, "3KB"])
def test_a_crash_at_any_moment_leaves_the_old_model_the_new_one_or_a_refusal(tmp_path, monkeypatch, before, after):
    old, new, crash_at, rename, unlink = tensors_of(config()), tensors_of(config(), seed=1), 0, os.replace, os.unlink
    outcomes = []
    while True:
        folder, calls = tmp_path / str(crash_at), []
        save(folder, config(), old, max_shard_size=before)

        def step(action, *paths, at=crash_at, calls=calls):
            calls.append(paths)
            if len(calls) > at and not str(paths[0]).endswith(".tmp" if action is unlink else "\0"):
                raise KeyboardInterrupt  # stands for kill -9
            action(*paths)

        monkeypatch.setattr(os, "replace", lambda *paths, step=step: step(rename, *paths))
        monkeypatch.setattr(os, "unlink", lambda path, step=step, **_: step(unlink, path))
        try:
            save(folder, config(), new, max_shard_size=after)
            break
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.undo()
        try:
            found = load(folder).tensors
            outcomes.append("old" if equal(found, old) else "new" if equal(found, new) else "mixture")
        except CheckpointError:
            outcomes.append("refused")
        crash_at += 1
    assert "mixture" not in outcomes
    assert outcomes[0] == "old"
    assert len(outcomes) >= 2


def test_the_same_model_is_saved_as_the_same_bytes(tmp_path):
    contents = []
    for name in ("one", "two"):
        save(tmp_path / name, config(), tensors_of(config()), max_shard_size="3KB")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


def test_an_encoder_decoder_is_saved_in_shards_too(tmp_path):
    model = EncoderDecoder(EncoderDecoderConfig(11, 8, 1, 2))
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(names_in(tmp_path)) > 4
    assert equal(EncoderDecoder.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_a_quantised_model_is_saved_in_shards_too(tmp_path):
    torch.manual_seed(0)
    model = TransformerLM(config()).quantize("int8")
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    assert equal(TransformerLM.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_a_size_that_is_none_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="max_shard_size"):
        save(tmp_path / "model", config(), tensors_of(config()), max_shard_size="large")
    assert not (tmp_path / "model").exists()


def test_a_disk_that_is_too_small_is_known_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"model needs [\d.]+ kB, but 1.0 kB are free on its disk; make room, or"):
        save(tmp_path / "model", config(), tensors_of(config()))
    assert not (tmp_path / "model").exists()
