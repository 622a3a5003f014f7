import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from prenorm import EncoderDecoder, EncoderDecoderConfig, TransformerLM
from prenorm.checkpoint.folder import load, save
from prenorm.checkpoint.inspection import inspect_folder, parameter_table
from prenorm.errors import CheckpointError

from .examples import config, tensors_of, without_manifest
from .families import FAMILIES, folder_of


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "model", config(window=5), tensors_of(config()))
    return without_manifest(tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


def elements(model):
    return sum(tensor.numel() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text", "qwen2"])
def test_the_sheet_counts_what_the_model_has(name, root):
    folder = folder_of(name, root)
    sheet, model = inspect_folder(folder), TransformerLM.from_pretrained(folder)
    assert sheet["refused"] == []
    assert sheet["model_type"] == FAMILIES[name][0]
    assert sheet["parameters"] == elements(model)
    assert sheet["config"] == model.config.to_dict()
    assert sheet["memory"]["bfloat16"]["weights"] == 2 * elements(model)
    cache = model.make_cache(1, model.config.max_seq_len, torch.bfloat16)
    held = sum(2 * layer.keys.nbytes for layer in cache)  # keys and values; a place of each layer is for padding
    assert sheet["memory"]["bfloat16"]["cache_of_512_tokens"] == pytest.approx(held, rel=0.01)
    stored = load_file(folder / "model.safetensors")
    assert {one["name"] for one in sheet["tensors"]} == stored.keys()
    assert sheet["stored_bytes"] == sheet["files"]["model.safetensors"] == sum(t.nbytes for t in stored.values())


@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_of_int8_and_int4_are_those_of_the_quantised_model(tmp_path, tied):
    shape = config(tie_embeddings=tied)  # of widths that are no multiples of a group
    save(tmp_path, shape, tensors_of(shape, dtype=torch.bfloat16))
    memory = inspect_folder(tmp_path)["memory"]
    for kind in ("int8", "int4"):
        model = TransformerLM.from_pretrained(tmp_path).quantize(kind)
        assert memory[kind]["weights"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(tmp_path)
    sheet = inspect_folder(tmp_path)
    assert (sheet["quantized"], sheet["refused"]) == ("int4", [])


def test_layers_are_one_row_of_the_table(saved):
    rows = {name: row for name, *row in parameter_table(inspect_folder(saved)["tensors"])}
    assert rows["model.layers.*.mlp.up_proj.weight"] == ["F32", "40 x 24", 2, 2 * 40 * 24]
    assert rows["lm_head.weight"] == ["F32", "61 x 24", 1, 61 * 24]


def test_every_reason_for_a_refusal_is_listed(saved, tmp_path):
    (saved / "generation_config.json").write_text('{"eos_token_id": 999}')
    stored = load_file(saved / "model.safetensors")
    save_file({**stored, "strange": torch.zeros(1)}, saved / "model.safetensors")
    (tmp_path / "secret").write_text("")
    (saved / "tokenizer.json").symlink_to(tmp_path / "secret")
    first, second, third = inspect_folder(saved)["refused"]
    assert "eos_token_id must be ids from 0 to 60, not 999" in first
    assert "tokenizer.json leads out of its folder" in second
    assert "unexpected: strange" in third
    edit(saved / "config.json", rope_theta=-1, hidden_act="mish")
    sheet = inspect_folder(saved)
    assert "hidden_act must be one of" in sheet["refused"][0]
    assert sheet["config"]["hidden_size"] == 24  # in the file's words
    assert len(sheet["tensors"]) == len(stored) + 1


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 10**4}, {"vocab_size": 10**15}, {"model_type": {"a": []}}])
def test_what_is_refused_is_said_as_opening_says_it(saved, changes):
    edit(saved / "config.json", **changes)
    with pytest.raises(CheckpointError) as refused:
        load(saved)
    assert str(refused.value) in inspect_folder(saved)["refused"]


def test_a_folder_of_pickles_and_one_without_a_config_are_sheets_with_reasons(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    assert "pickles" in inspect_folder(saved)["refused"][0]
    (saved / "config.json").unlink()
    assert "must have config.json" in inspect_folder(saved)["refused"][0]


def test_an_encoder_decoder_is_inspected_too(tmp_path):
    model = EncoderDecoder(EncoderDecoderConfig(11, 8, 1, 2))
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    sheet = inspect_folder(tmp_path)
    assert (sheet["refused"], sheet["parameters"]) == ([], elements(model))
    assert len(sheet["files"]) > 2


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="FOLDER must be a folder that holds a model, but there is no folder"):
        inspect_folder(tmp_path / "none")
