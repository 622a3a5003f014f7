import errno
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from prenorm import ModelConfig, TransformerLM
from prenorm.checkpoint.folder import load, save
from prenorm.checkpoint.writing import config_to_hugging_face
from prenorm.errors import CheckpointError, ConfigError

from ..oracle.tolerance import assert_accurate
from .examples import IN_A_FAMILY, IN_NO_FAMILY, config, equal, tensors_of, without_manifest

logging.disable_progress_bar()

TOKENS = torch.arange(2 * 23).reshape(2, 23) * 7 % 61  # longer than the window of 5, shorter than max_seq_len


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with a small Llama, whose files may be changed."""
    save(tmp_path / "model", config(), tensors_of(config()), eos_token_ids=(3,))
    return without_manifest(tmp_path / "model")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_logits(ours: TransformerLM, theirs: torch.nn.Module) -> None:
    """In float32, with theirs in float64 as the oracle and theirs in float32 as the plain formula."""
    with torch.no_grad():
        actual, plain = ours(TOKENS), theirs(TOKENS).logits
        oracle = theirs.double()(TOKENS).logits
    assert_accurate(actual, oracle.numpy(), plain)


def random_model(config: ModelConfig) -> TransformerLM:
    model = TransformerLM(config).eval()
    model.load_state_dict({name: 0.3 * tensor for name, tensor in tensors_of(config).items()})
    return model


@pytest.mark.parametrize("with_weights", [True, False])
def test_an_adapter_is_refused_also_beside_the_weights_of_a_model(saved, with_weights):
    if not with_weights:  # as peft saves it
        for path in saved.iterdir():
            path.unlink()
    (saved / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "other/model"}')
    with pytest.raises(CheckpointError, match=r"holds an adapter \(adapter_config.json\).*merge_and_unload"):
        load(saved)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("example", IN_A_FAMILY)
def test_transformers_opens_our_folder_with_the_same_logits(tmp_path, example, interleaved):
    family, changes = IN_A_FAMILY[example]
    ours = random_model(config(**changes, rope_interleaved=interleaved))
    ours.save_pretrained(tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert theirs.config.model_type == family
    assert not any(report.values())
    assert_same_logits(ours, theirs)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("shard_size", ["5GB", "8KB"])
@pytest.mark.parametrize("example", IN_A_FAMILY)
def test_we_open_a_folder_of_theirs_with_the_same_logits(tmp_path, example, shard_size):
    _, changes = IN_A_FAMILY[example]
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_to_hugging_face(config(**changes)))).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "5GB")
    ours = TransformerLM.from_pretrained(tmp_path)
    assert ours.config == config(**changes)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_save_then_load_is_identity_in_every_dtype(tmp_path, dtype):
    tensors = tensors_of(config(), dtype=dtype)
    save(tmp_path, config(), tensors, eos_token_ids=(3, 5))
    loaded = load(tmp_path)
    assert (loaded.config, loaded.eos_token_ids) == (config(), (3, 5))
    assert equal(loaded.tensors, tensors)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_the_same_model_is_saved_as_the_same_bytes(saved, tmp_path):
    save(tmp_path / "again", config(), tensors_of(config()), eos_token_ids=(3,))
    assert sorted(contents_of(tmp_path / "again")) == ["config.json", "model.safetensors", "prenorm_manifest.json"]
    assert contents_of(saved) == contents_of(without_manifest(tmp_path / "again"))


def test_mixed_dtypes_are_declared_as_one_that_loses_nothing(tmp_path):
    tensors = tensors_of(config(), dtype=torch.bfloat16)
    tensors["final_norm.weight"] = tensors["final_norm.weight"].float()
    save(tmp_path, config(), tensors)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert equal(load(tmp_path).tensors, tensors)


@pytest.mark.parametrize(
    ("other", "part", "named", "becomes"),
    [
        (torch.float32, "lm_head", "bfloat16", torch.bfloat16),
        (torch.float32, "embed_tokens", None, torch.float32),
        (torch.float16, "q_proj", "auto", torch.float32),
        (torch.float16, "mlp", "float16", torch.float16),
        (torch.float32, "norm", "bfloat16", None),  # which are not multiplied by another matrix
    ],
)
def test_matrices_that_are_stored_in_several_dtypes_get_one(saved, other, part, named, becomes):
    path = saved / "model.safetensors"
    stored = {name: t.to(other if part in name else torch.bfloat16) for name, t in load_file(path).items()}
    save_file(stored, path, {"format": "pt"})
    edit(saved / "config.json", dtype=named, torch_dtype=named, prenorm_save_id=None)
    model = TransformerLM.from_pretrained(saved)
    found = {parameter.dtype for parameter in model.parameters()}
    assert found == ({torch.bfloat16, other} if becomes is None else {becomes})
    with torch.no_grad():
        assert model(TOKENS).isfinite().all()
        if becomes is not None:
            theirs = AutoModelForCausalLM.from_pretrained(saved, dtype=becomes)
            assert torch.equal(theirs.model.embed_tokens.weight, model.embedding.weight)


def test_a_model_is_loaded_in_the_dtype_asked_for(saved):
    expected = {name: tensor.double() for name, tensor in tensors_of(config()).items()}
    assert equal(load(saved, dtype=torch.float64, device="cpu").tensors, expected)


def test_an_interleaved_model_comes_back_half_split_with_the_same_logits(tmp_path):
    ours = random_model(config(rope_interleaved=True, qk_norm=True, qkv_bias=True, o_bias=True))
    ours.save_pretrained(tmp_path)
    back = TransformerLM.from_pretrained(tmp_path)
    assert not back.config.rope_interleaved
    with torch.no_grad():
        assert_accurate(back(TOKENS), ours.double()(TOKENS).numpy(), ours.float()(TOKENS))


@pytest.mark.parametrize("example", IN_NO_FAMILY)
def test_a_model_of_no_family_is_saved_said_aloud_and_read_back(tmp_path, example):
    original = config(**IN_NO_FAMILY[example])
    with pytest.warns(
        UserWarning, match="saved as model_type 'prenorm', which prenorm can open but transformers cannot"
    ):
        save(tmp_path, original, tensors_of(original))
    assert load(tmp_path).config == original
    assert equal(load(tmp_path).tensors, tensors_of(original))


def test_warnings_as_errors_do_not_cost_the_model(tmp_path):
    odd = config(o_bias=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            save(tmp_path, odd, tensors_of(odd))
    assert equal(load(tmp_path).tensors, tensors_of(odd))


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path):
    tied = config(tie_embeddings=True)
    tensors = tensors_of(tied)
    save(tmp_path, tied, tensors | {"lm_head.weight": tensors["embedding.weight"]})
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored
    without_manifest(tmp_path)
    save_file(stored | {"lm_head.weight": tensors["embedding.weight"].clone()}, tmp_path / "model.safetensors")
    assert equal(load(tmp_path).tensors, tensors)
    save_file(stored | {"lm_head.weight": tensors["embedding.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r'model.embed_tokens.weight; "tie_word_embeddings": false says that they'
    ):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from embedding.weight"):
        save(tmp_path, tied, tensors | {"lm_head.weight": tensors["embedding.weight"] + 1})


def test_tensors_that_are_not_the_configs_are_not_saved(tmp_path):
    tensors = tensors_of(config())
    del tensors["final_norm.weight"]
    tensors["embedding.weight"] = tensors["embedding.weight"].int()
    with pytest.raises(
        CheckpointError, match=r"the model to save: .*missing: final_norm.weight; .*embedding.weight I32"
    ):
        save(tmp_path / "model", config(), tensors)
    assert not (tmp_path / "model").exists()


def test_tensors_that_are_not_the_configs_are_not_loaded(saved):
    edit(saved / "config.json", num_hidden_layers=1, vocab_size=60)
    with pytest.raises(
        CheckpointError, match=r"model: the tensors .* unexpected: model.layers.1.*of another shape: lm_head"
    ):
        load(saved)


@pytest.mark.parametrize(
    "changes",
    [{"vocab_size": 10**12, "num_hidden_layers": 2}, {"num_hidden_layers": 10**4}, {"num_hidden_layers": 10**9}],
)
def test_an_absurd_config_is_refused_before_anything_is_allocated(saved, changes):
    edit(saved / "config.json", **changes)
    with pytest.raises(
        CheckpointError, match=r"instead of \(1000000000000, 24\)|a model of 10000 layers|at most 65536"
    ):
        load(saved)


def test_a_quantised_folder_is_refused(saved):
    stored = load_file(saved / "model.safetensors")
    stored["lm_head.weight"] = stored["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(stored, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"of a dtype other than F32, BF16, F16, F64: lm_head.weight F8_E4M3"):
        load(saved)


def test_a_folder_cut_short_is_named(saved):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut short"):
        load(saved)


def test_a_config_that_is_no_json_is_named(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json must be valid JSON"):
        load(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "meta-llama/Llama-3.2-1B",
            "nothing is downloaded, but `hf download meta-llama/Llama-3.2-1B --local-dir Llama",
        ),
        ("/no/such/folder", r"/no/such/folder must be the folder of a model, but there is no such folder\.$"),
    ],
)
def test_a_name_that_is_no_folder_is_a_clear_line(name, message):
    with pytest.raises(CheckpointError, match=message):
        load(name)


def test_a_file_and_an_empty_folder_are_clear_lines(tmp_path, saved):
    with pytest.raises(
        CheckpointError, match=r"config.json must be a folder, but it is a file; give the folder that contains it"
    ):
        load(saved / "config.json")
    with pytest.raises(
        CheckpointError, match=r"a model folder must have config.json and model.safetensors, but .* has no config.json"
    ):
        load(tmp_path)


def test_the_root_of_a_download_cache_names_the_folder_with_its_versions(tmp_path):
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(CheckpointError, match=rf"has no config.json; {tmp_path}/snapshots holds such folders, one for"):
        load(tmp_path)


def test_a_folder_that_may_not_be_read_is_a_clear_line(saved, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(CheckpointError, match=r"model cannot be read: Permission denied\."):
        load(saved)


def test_weights_are_not_rounded_to_whole_numbers(saved):
    with pytest.raises(ConfigError, match=r"a model's dtype must be one of F32, BF16, F16, F64, not torch.int32\."):
        load(saved, dtype=torch.int32)


def test_an_end_of_text_that_the_vocabulary_lacks_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"the model to save: eos_token_ids must be ids from 0 to 60, not 61"):
        save(tmp_path, config(), tensors_of(config()), eos_token_ids=(61,))


def test_old_rotary_tables_are_left_out(saved):
    stored = load_file(saved / "model.safetensors")
    save_file(stored | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}, saved / "model.safetensors")
    assert equal(load(saved).tensors, tensors_of(config()))


@pytest.mark.parametrize(("value", "expected"), [(5, (5,)), ([5, 6], (5, 6)), (None, (3,))])
def test_the_generation_config_has_the_last_word_on_where_a_text_ends(saved, value, expected):
    (saved / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert load(saved).eos_token_ids == expected


def test_an_old_generation_config_does_not_overrule_a_new_model(saved):
    (saved / "generation_config.json").write_text('{"eos_token_id": 9, "temperature": 0.6}')
    save(saved, config(), tensors_of(config()), eos_token_ids=(4,))
    assert load(saved).eos_token_ids == (4,)
    assert json.loads((saved / "generation_config.json").read_text()) == {"eos_token_id": 4, "temperature": 0.6}


def test_saving_over_a_sharded_folder_leaves_one_model(tmp_path):
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_to_hugging_face(config())))
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    save(tmp_path, config(), tensors_of(config()))
    assert sorted(contents_of(without_manifest(tmp_path))) == [
        *("config.json", "generation_config.json", "model.safetensors")
    ]
    assert equal(load(tmp_path).tensors, tensors_of(config()))


def test_the_file_says_that_it_is_pytorchs(saved):
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_a_full_disk_leaves_the_old_model(saved, monkeypatch):
    before, synced = contents_of(saved), []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:  # the weights fitted, the config did not
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"could not be written: the disk is full"):
        save(saved, config(rope_theta=5e5), tensors_of(config(), seed=1))
    assert contents_of(saved) == before


def test_a_crash_between_weights_and_config_is_noticed(saved, monkeypatch):
    rename = os.replace

    def replace(source, target):
        if target.name == "config.json":
            raise KeyboardInterrupt  # stands for kill -9: nothing after this line runs
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save(saved, config(rope_theta=5e5), tensors_of(config(), seed=1), eos_token_ids=(3,))
    with pytest.raises(CheckpointError, match=r"config\.json has .* bytes instead of .* a save was cut off"):
        load(saved)
    with pytest.raises(CheckpointError, match=r"must have been saved together, but their prenorm_save_id differ"):
        load(without_manifest(saved))
    # The same config again, as in every checkpoint of a training: new weights, and their manifest.
    monkeypatch.setattr(os, "replace", rename)
    save(saved, config(), tensors_of(config()), eos_token_ids=(3,))
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save(saved, config(), tensors_of(config(), seed=1), eos_token_ids=(3,))
    assert equal(load(saved).tensors, tensors_of(config(), seed=1))


def test_a_config_may_be_edited_and_either_file_saved_anew_by_transformers(saved):
    edit(saved / "config.json", max_position_embeddings=128)
    assert load(saved).config == config(max_seq_len=128)
    AutoModelForCausalLM.from_pretrained(saved).save_pretrained(saved)
    assert load(saved).config == config(max_seq_len=128)
    assert equal(load(saved).tensors, tensors_of(config()))
