import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerLM
from prenorm.checkpoint.encoder_decoder import load, parameters_of, save
from prenorm.errors import CheckpointError, ConfigError

from ..oracle.inputs import integers, randomise
from .examples import equal, without_manifest

VARIANTS: tuple[Any, ...] = (
    {},
    {"positions": "learned", "num_decoder_layers": 3},
    {"tie_embeddings": False, "target_vocab_size": 7, "start_token_id": 2, "eps": 1e-3},
)
variants = pytest.mark.parametrize("changes", VARIANTS, ids=["tied", "learned", "untied"])


def config(**changes):
    sizes = {"vocab_size": 11, "d_model": 8, "num_layers": 2, "num_heads": 2, "d_ff": 12, "max_seq_len": 16}
    return EncoderDecoderConfig(**{**sizes, **changes})


def make(seed=0, dtype=torch.float32, **changes):
    model = randomise(EncoderDecoder(config(**changes), dtype=dtype), seed)
    model.eos_token_ids = (3,)
    return model


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with a small tied model, whose files may be changed."""
    make().save_pretrained(tmp_path / "model")
    return without_manifest(tmp_path / "model")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@variants
def test_the_table_of_names_and_shapes_is_the_models_own(changes):
    state = make(**changes).state_dict()
    assert dict(parameters_of(config(**changes))) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert len(list(parameters_of(config(**changes)))) == len(state)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@variants
def test_save_then_load_is_identity_in_every_dtype(tmp_path, changes, dtype):
    model = make(dtype=dtype, **changes)
    model.save_pretrained(tmp_path)
    back = EncoderDecoder.from_pretrained(tmp_path)
    assert (back.config, back.eos_token_ids) == (model.config, (3,))
    assert equal(back.state_dict(), model.state_dict())


@variants
def test_what_comes_back_gives_the_same_numbers_and_can_be_trained_on(tmp_path, changes):
    model = make(**changes).eval()
    model.save_pretrained(tmp_path)
    back = EncoderDecoder.from_pretrained(tmp_path)
    assert not back.training
    source = integers(2, 5, limit=11)
    target = integers(2, 4, limit=7)
    assert torch.equal(back(source, target), model(source, target))
    options = {"max_new_tokens": 5, "seed": 0}
    assert back.generate(source, **options) == model.generate(source, **options)
    back.train().loss(source, target, target).backward()
    assert all(parameter.grad is not None for parameter in back.parameters())


def test_the_folder_says_what_it_holds(saved):
    fields = json.loads((saved / "config.json").read_text())
    assert fields.pop("prenorm_save_id")
    assert fields == {"model_type": "prenorm_encoder_decoder", **config().to_dict(), "eos_token_ids": [3]}
    assert sorted(contents_of(saved)) == ["config.json", "model.safetensors"]
    assert equal(load_file(saved / "model.safetensors"), make().state_dict())


def test_the_same_model_is_saved_as_the_same_bytes(saved, tmp_path):
    EncoderDecoder.from_pretrained(saved).save_pretrained(str(tmp_path / "again"))
    assert contents_of(saved) == contents_of(without_manifest(tmp_path / "again"))


def test_a_model_is_loaded_in_the_dtype_and_place_asked_for(saved):
    back = EncoderDecoder.from_pretrained(saved, dtype=torch.float64, device="cpu")
    assert equal(back.state_dict(), make().double().state_dict())
    with pytest.raises(ConfigError, match=r"a model's dtype must be one of F32, BF16, F16, F64, not torch.int32\."):
        EncoderDecoder.from_pretrained(saved, dtype=torch.int32)


def test_each_class_names_the_other_for_its_folder(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"not \"prenorm_encoder_decoder\"; EncoderDecoder.from_pretrained opens"):
        TransformerLM.from_pretrained(saved)
    TransformerLM(ModelConfig(11, 8, 1, 2)).save_pretrained(tmp_path / "lm")
    message = (
        r"must be prenorm_encoder_decoder for an EncoderDecoder, not \"llama\"; .* TransformerLM.from_pretrained\."
    )
    with pytest.raises(CheckpointError, match=message):
        EncoderDecoder.from_pretrained(tmp_path / "lm")


def test_a_folder_may_change_its_owner(saved, tmp_path):
    lm = TransformerLM(ModelConfig(11, 8, 1, 2))
    lm.save_pretrained(saved)
    assert equal(TransformerLM.from_pretrained(saved).state_dict(), lm.state_dict())
    make(seed=1).save_pretrained(saved)
    assert equal(EncoderDecoder.from_pretrained(saved).state_dict(), make(seed=1).state_dict())


def test_keys_that_are_missing_or_unknown_are_all_named(saved):
    edit(saved, window=3, num_kv_heads=1)
    fields = json.loads((saved / "config.json").read_text())
    del fields["eps"], fields["eos_token_ids"]
    (saved / "config.json").write_text(json.dumps(fields))
    message = "but eos_token_ids is missing; eps is missing; num_kv_heads is not known; window is not known"
    with pytest.raises(CheckpointError, match=message):
        load(saved)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"config.json: num_heads must divide d_model, but 3 does not divide 8"),
        ({"positions": "rotary"}, r"config.json: positions must be 'sinusoidal' or 'learned', not \"rotary\""),
        ({"eps": "0.1"}, 'config.json: eps must be a finite number, not "0.1"'),
        ({"eos_token_ids": [11]}, "config.json: eos_token_ids must be ids from 0 to 10, not 11"),
        ({"eos_token_ids": [True]}, "config.json: eos_token_ids must be ids from 0 to 10, not true"),
        (
            {"model_type": None},
            "config.json: model_type must be prenorm_encoder_decoder for an EncoderDecoder, not null",
        ),
        (
            {"num_decoder_layers": 10**9},
            "a model of 1000000002 layers needs several tensors per layer, but there are only",
        ),
        ({"vocab_size": 10**15, "target_vocab_size": 10**15}, r"of another shape: embedding.weight \(11, 8\) instead"),
        ({"positions": "learned"}, "missing: source_positions.embedding.weight, target_positions.embedding.weight"),
    ],
)
def test_a_config_that_no_model_or_not_these_weights_can_have_is_refused_before_anything_is_allocated(
    saved, changes, message
):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_every_tensor_that_differs_is_named_at_once(saved):
    stored = load_file(saved / "model.safetensors")
    for layer in range(2):
        del stored[f"decoder.layers.{layer}.cross_attn.k_proj.bias"]
    stored["embedding.weight"] = stored["embedding.weight"][:, :4].contiguous()
    stored["lm_head.weight"] = torch.zeros(11, 8)
    stored["encoder.final_norm.bias"] = stored["encoder.final_norm.bias"].to(torch.float8_e4m3fn)
    save_file(stored, saved / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        load(saved)
    assert str(refused.value) == (
        f"{saved}: the tensors must be exactly those of the config, but some are missing: "
        "decoder.layers.*.cross_attn.k_proj.bias (layers 0 to 1); unexpected: lm_head.weight; of another shape: "
        "embedding.weight (11, 4) instead of (11, 8); of a dtype other than F32, BF16, F16, F64: "
        "encoder.final_norm.bias F8_E4M3."
    )


def test_tensors_that_are_not_the_configs_are_not_saved(tmp_path):
    tensors = make().state_dict()
    del tensors["encoder.final_norm.weight"]
    with pytest.raises(CheckpointError, match=r"the model to save: .*missing: encoder.final_norm.weight\."):
        save(tmp_path / "model", config(), tensors, ())
    with pytest.raises(CheckpointError, match="the model to save: eos_token_ids must be ids from 0 to 6, not 7"):
        save(tmp_path / "model", config(**VARIANTS[2]), make(**VARIANTS[2]).state_dict(), (7,))
    assert not (tmp_path / "model").exists()


def test_a_folder_cut_short_and_a_config_that_is_no_json_are_named(saved):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut short"):
        load(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json must be valid JSON"):
        load(saved)


def test_a_folder_that_is_none_is_a_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match="must be the folder of a model, but there is no such folder"):
        EncoderDecoder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(
        CheckpointError, match=r"a model folder must have config.json and model.safetensors, but .* has no config.json"
    ):
        EncoderDecoder.from_pretrained(str(tmp_path))


def test_a_crash_between_weights_and_config_is_noticed(saved, monkeypatch):
    rename = os.replace

    def replace(source, target):
        if target.name == "config.json":
            raise KeyboardInterrupt  # stands for kill -9: nothing after this line runs
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        make(seed=1, eps=0.5).save_pretrained(saved)
    with pytest.raises(CheckpointError, match=r"config\.json has .* bytes instead of .* a save was cut off"):
        load(saved)
    with pytest.raises(CheckpointError, match="must have been saved together, but their prenorm_save_id differ"):
        load(without_manifest(saved))
