import dataclasses

import pytest

from prenorm.config import ModelConfig
from prenorm.errors import ConfigError
from prenorm.training.config import TrainConfig, config_to_toml, differences, read_toml
from prenorm.training.presets import PRESETS

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"finetune"}))
def test_a_run_goes_to_toml_and_back_unchanged(preset, tmp_path):
    odd = {"seed": 12345678901234567890, "muon_lr": 0.1 + 0.2, "data": ["a b", "c\\'\"d"], "window": 7, "out": "x/ä"}
    scaling = {"kind": "linear", "factor": 2.0}
    family = {"residual": "post", "logit_softcap": 3.0, "window_rope_theta": 9.0, "window_rope_scaling": scaling}
    factors = [1.0] * (TrainConfig.from_fields({"preset": preset}).model.head_dim // 2)
    longrope = {"kind": "longrope", "factor": 2.0, "short_factors": factors, "long_factors": factors}
    records = ({"rope_scaling": scaling, "num_kv_heads": 1, "micro_batch_size": 1}, {"rope_scaling": longrope})
    for fields in ({}, odd, *records, {"family": family}):
        config = TrainConfig.from_fields({"preset": preset, **fields})
        (tmp_path / "config.toml").write_text(config_to_toml(config))
        assert TrainConfig.from_fields(read_toml(tmp_path / "config.toml")) == config
        assert TrainConfig.from_fields(config.to_fields()) == config


def test_fields_change_a_preset_and_sizes_left_out_follow_them():
    config = TrainConfig.from_fields({"preset": "tiny", "d_model": 96, "context": 48})
    assert config.model == ModelConfig(512, d_model=96, num_layers=2, num_heads=2, max_seq_len=48)
    assert config.steps == PRESETS["tiny"]["steps"]
    assert config.out == "runs/tiny"


def test_the_learning_rate_of_adamw_is_filled_in_and_a_presets_is_dropped_for_muon():
    assert TrainConfig.from_fields({"preset": "tiny", "optimizer": "adamw"}).lr == 0.001
    sizes = {"vocab_size": 512, "d_model": 64, "num_layers": 2, "num_heads": 2, "start_from": "folder"}
    for optimizer, lr in (("adamw", 2e-5), ("muon", None)):
        config = TrainConfig.from_fields({"preset": "finetune", "optimizer": optimizer, **sizes})
        assert config.lr == lr
        assert TrainConfig.from_fields(config.to_fields()) == config


def test_the_gpt2_small_preset_has_about_110_million_parameters():
    from prenorm.checkpoint.names import parameters_of

    model = TrainConfig.from_fields({"preset": "gpt2-small"}).model
    sizes = [parameter.shape for parameter in parameters_of(model)]
    total = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in sizes)
    assert 105e6 < total < 115e6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_sise": 3}, "no field named batch_sise. Did you mean batch_size?"),
        ({"preset": "huge"}, "preset must be one of demo, tiny, gpt2-small, finetune, not 'huge'"),
        (
            {"preset": "finetune"},
            "the preset finetune goes on from a model, but none is named; --from FOLDER names one",
        ),
        ({"preset": []}, "preset must be one of"),
        ({"dtype": "half"}, "dtype must be one of auto, float32, bfloat16, bfloat16-pure, float16, not 'half'"),
        ({"optimizer": "sgd"}, "optimizer must be one of muon, adamw, not 'sgd'"),
        ({"schedule": "step"}, "schedule must be one of linear, cosine, wsd, not 'step'"),
        ({"on_nan": "ignore"}, "on_nan must be one of stop, skip, not 'ignore'"),
        ({"lr": 0.1}, "lr is the learning rate of optimizer=adamw, but optimizer is muon and lr 0.1; Muon has muon_lr"),
        ({"optimizer": "adamw", "lr": -1.0}, "lr must be at least 0, not -1.0"),
        ({"final_lr_share": 1.5}, "final_lr_share must be between 0 and 1, not 1.5"),
        ({"ema_decay": 1.0}, "ema_decay must be between 0 and 1 (1 excluded), not 1.0"),
        ({"early_stop": 2, "eval_every": 0}, "but early_stop is 2 and eval_every 0; eval_every=100 would do"),
        ({"sample_every": -1}, "sample_every must be an integer of at least 0, not -1"),
        ({"sample_prompt": "a\nb"}, "sample_prompt must have printable characters only"),
        ({"tensorboard": 1}, "tensorboard must be True or False, not 1"),
        ({"start_from": 3}, "start_from must be a string, not 3"),
        ({"steps": 0}, "steps must be an integer of at least 1, not 0"),
        ({"steps": "12"}, "steps must be an integer of at least 1, not '12'"),
        ({"context": 1.5}, "context must be an integer"),
        ({"seed": -1}, "seed must be an integer of at least 0, not -1"),
        ({"muon_lr": float("nan")}, "muon_lr must be a finite number"),
        ({"head_lr": -0.1}, "head_lr must be at least 0, not -0.1"),
        ({"decay_share": 1.1}, "decay_share must be between 0 and 1, not 1.1"),
        ({"eval_overlap": 1.0}, "eval_overlap must be between 0 and 1 (1 excluded), not 1.0"),
        ({"adam_betas": [0.9]}, "adam_betas must be two numbers, such as 0.9 and 0.95, not [0.9]"),
        ({"adam_betas": [0.9, 1.0]}, "each of adam_betas must be between 0 and 1"),
        ({"data": "text.txt"}, "data must be a list of strings, not 'text.txt'"),
        ({"data": ["a\nb"]}, "each of data must have printable characters only"),
        ({"compile": 1}, "compile must be True or False, not 1"),
        ({"checkpoint_activations": 2}, "checkpoint_activations must be True or False, not 2"),
        (
            {"checkpoint_activations_every": 0},
            "checkpoint_activations_every must be an integer of at least 1, not 0",
        ),
        ({"out": 3}, "out must be a string, not 3"),
        ({"batch_size": 12, "micro_batch_size": 5}, "5 does not divide 12; micro_batch_size=4 would"),
        ({"context": 64, "max_seq_len": 32}, "64 is greater than 32; max_seq_len=64 would do"),
        ({"context": 64, "short_context": 24}, "24 does not divide 64; context=48 would do"),
        ({"vocab_size": 256}, "vocab_size must be at least 257"),
        ({"num_heads": 3}, "num_heads must divide d_model"),
    ],
)
def test_what_no_run_can_have_is_refused_with_the_value(fields, message):
    with pytest.raises(ConfigError) as raised:
        TrainConfig.from_fields({"preset": "tiny", **fields})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "has no field named stepz. Did you mean steps?"),
        ("[model]\nd_modle = 3", "[model] in"),
        ("d_model = 3", "has no field named d_model"),
        ("model = 3", "must be a table"),
        ("steps = ", "is not TOML"),
    ],
)
def test_a_file_that_no_run_wrote_is_refused_by_name(text, message, tmp_path):
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_toml(tmp_path / "my.toml")
    assert message in str(raised.value)
    assert "my.toml" in str(raised.value)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\x00")
    for name in ("missing.toml", "binary.toml"):
        with pytest.raises(ConfigError, match=name):
            read_toml(tmp_path / name)


def test_differences_names_every_field_that_changed():
    old = TrainConfig.from_fields({"preset": "tiny"})
    new = dataclasses.replace(old, seed=3, model=dataclasses.replace(old.model, dropout=0.5))
    assert differences(old, new) == {"seed": (0, 3), "dropout": (0.0, 0.5)}
    assert differences(old, old) == {}
