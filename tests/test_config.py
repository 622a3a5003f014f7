import dataclasses
import json
import math
import re
from typing import Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prenorm import ConfigError, EncoderDecoderConfig, ModelConfig, RopeScaling, TransformerBlock

GOOD = {"vocab_size": 100, "d_model": 48, "num_layers": 2, "num_heads": 4}

scalings = st.builds(
    RopeScaling,
    kind=st.sampled_from(["linear", "llama3", "yarn"]),
    factor=st.floats(1, 64),
    low_freq_factor=st.floats(0.5, 2),
    high_freq_factor=st.floats(3, 8),
    original_max_seq_len=st.integers(1, 2**17),
)
configs = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(1, 10**6),
        "d_model": st.sampled_from([48, 96]),
        "num_layers": st.integers(1, 200),
        "num_heads": st.sampled_from([4, 8]),
    },
    optional={
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([2, 128]),
        "d_ff": st.integers(1, 10**5),
        "max_seq_len": st.integers(1, 10**6),
        "rope_theta": st.floats(1, 1e7),
        "rope_interleaved": st.booleans(),
        "rope_scaling": st.none() | scalings,
        "eps": st.floats(1e-12, 0.1),
        "window": st.none() | st.integers(1, 10**5),
        "qk_norm": st.booleans(),
        "qkv_bias": st.booleans(),
        "o_bias": st.booleans(),
        "tie_embeddings": st.booleans(),
        "dropout": st.floats(0, 0.9),
    },
).map(lambda fields: ModelConfig(**fields))


@given(configs)
def test_a_config_goes_to_json_and_back_unchanged(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_fields_and_their_defaults_are_those_of_the_design():
    fields = {
        **GOOD,
        "num_kv_heads": 4,
        "head_dim": 12,
        "d_ff": 128,
        "max_seq_len": 2048,
        "rope_theta": 10000.0,
        "rope_interleaved": False,
        "rope_scaling": None,
        "eps": 1e-6,
        "window": None,
        "qk_norm": False,
        "qkv_bias": False,
        "o_bias": False,
        "tie_embeddings": False,
        "dropout": 0.0,
        "family": None,
    }
    assert list(ModelConfig(**GOOD).to_dict().items()) == list(fields.items())  # in this order, too


@pytest.mark.parametrize("name", ["num_kv_heads", "head_dim", "d_ff"])
def test_a_size_of_none_is_filled_in(name):
    assert ModelConfig(**GOOD, **{name: None}) == ModelConfig(**GOOD)


@given(st.integers(1, 5000))
def test_d_ff_is_eight_thirds_of_the_width_rounded_up_to_64(half):
    d_ff = ModelConfig(10, 2 * half, 1, 1).d_ff
    assert d_ff % 64 == 0
    assert 0 <= d_ff - 8 * 2 * half / 3 < 64


def test_a_config_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast(Any, ModelConfig(**GOOD)).d_model = 96


BAD = [
    *[({name: 0}, f"{name} must be an integer of at least 1, not 0") for name in GOOD],
    *[({name: -1}, f"{name} must be an integer of at least 1, not -1") for name in GOOD],
    ({"d_model": 48.0}, "d_model must be an integer of at least 1, not 48.0"),
    ({"num_layers": True}, "num_layers must be an integer of at least 1, not True"),
    ({"vocab_size": "100"}, "vocab_size must be an integer of at least 1, not '100'"),
    ({"num_heads": 5}, "num_heads must divide d_model, but 5 does not divide 48; d_model=50 or num_heads=4 would"),
    ({"num_heads": 48}, "head_dim must be even, .* but it is 1 .d_model 48, num_heads 48.; head_dim=2 would do"),
    ({"head_dim": 7}, "head_dim must be even, .* but it is 7 .*; head_dim=8 would do"),
    ({"head_dim": 0}, "head_dim must be an integer of at least 1, not 0"),
    ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, but 3 does not divide 4; num_kv_heads=2 would"),
    ({"num_kv_heads": 8}, "num_kv_heads must divide num_heads, but 8 does not divide 4; num_kv_heads=4 would"),
    ({"num_kv_heads": 0}, "num_kv_heads must be an integer of at least 1, not 0"),
    ({"d_ff": 0}, "d_ff must be an integer of at least 1, not 0"),
    ({"max_seq_len": 0}, "max_seq_len must be an integer of at least 1, not 0"),
    ({"rope_theta": 0.0}, "rope_theta must be greater than 0, not 0.0"),
    ({"rope_theta": math.inf}, "rope_theta must be a finite number, not inf"),
    ({"rope_theta": "10000"}, "rope_theta must be a finite number, not '10000'"),
    ({"eps": 0.0}, "eps must be greater than 0, not 0.0"),
    ({"eps": math.nan}, "eps must be a finite number, not nan"),
    ({"dropout": -0.1}, "dropout must be at least 0, not -0.1"),
    ({"dropout": 1.0}, "dropout must be below 1, not 1.0"),
    ({"window": 0}, "window must be an integer of at least 1, not 0"),
    ({"rope_scaling": {"kind": "linear"}}, "rope_scaling must be a RopeScaling record or None"),
    *[
        ({name: 1}, f"{name} must be True or False, not 1")
        for name in ("rope_interleaved", "qk_norm", "qkv_bias", "o_bias", "tie_embeddings")
    ],
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_numbers_that_no_model_can_have_are_refused_with_the_rule(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{**GOOD, **change})


BAD_SCALINGS = [
    ({"kind": "ntk"}, "rope_scaling kind must be one of 'linear', 'dynamic', .*, 'longrope', not 'ntk'"),
    ({"kind": "yarn", "beta_fast": 1.0}, "beta_fast must be greater than beta_slow, but 1.0 is not greater than 1.0"),
    ({"kind": "longrope"}, r"short_factors must be a number for each pair of features, not \(\)"),
    ({"kind": "yarn", "attention_factor": 0.0}, "rope_scaling attention_factor must be greater than 0"),
    ({"truncate": 1}, "rope_scaling truncate must be True or False"),
    ({"factor": 0.5}, "rope_scaling factor must be at least 1, not 0.5"),
    ({"factor": math.inf}, "rope_scaling factor must be a finite number"),
    ({"low_freq_factor": 0.0}, "rope_scaling low_freq_factor must be greater than 0"),
    (
        {"high_freq_factor": 1.0},
        "high_freq_factor must be greater than low_freq_factor, but 1.0 is not greater than 1.0",
    ),
    ({"original_max_seq_len": 0}, "rope_scaling original_max_seq_len must be an integer of at least 1"),
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("change", "message"), BAD_SCALINGS, ids=[str(change) for change, _ in BAD_SCALINGS])
def test_scalings_that_no_model_can_have_are_refused_with_the_rule(change, message):
    with pytest.raises(ConfigError, match=message):
        RopeScaling(**{"kind": "llama3", "factor": 8.0, **change})


def test_fields_that_no_config_has_are_refused_by_name():
    with pytest.raises(ConfigError, match="no field named n_head, n_layer"):
        ModelConfig.from_dict({**GOOD, "n_layer": 2, "n_head": 4})


@pytest.mark.parametrize("scaling", [{"kind": "linear", "factor": 2.0, "beta": 1.0}, {"kind": "linear"}, {}])
def test_a_scaling_with_other_fields_is_refused_like_any_config(scaling):
    with pytest.raises(ConfigError, match="rope_scaling"):
        ModelConfig.from_dict({**GOOD, "rope_scaling": scaling})


def test_a_config_without_its_sizes_is_refused_by_name():
    with pytest.raises(ConfigError, match="d_model"):
        ModelConfig.from_dict({name: value for name, value in GOOD.items() if name != "d_model"})


@given(st.integers(1, 200), st.integers(1, 200))
def test_the_way_out_that_a_message_names_is_a_way_out(d_model, num_heads):
    sizes = {"d_model": d_model, "num_heads": num_heads}
    try:
        ModelConfig(10, num_layers=1, **sizes)
        assume(False)
    except ConfigError as refused:
        ways_out = re.findall(r"(d_model|num_heads|head_dim)=(\d+)", str(refused))
    assert ways_out
    for name, value in ways_out:
        ModelConfig(10, num_layers=1, **{**sizes, name: int(value)})


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_number_of_key_heads_that_a_message_names_is_allowed(num_heads, num_kv_heads):
    sizes = {"vocab_size": 10, "d_model": 2 * num_heads, "num_layers": 1, "num_heads": num_heads}
    try:
        ModelConfig(**sizes, num_kv_heads=num_kv_heads)
    except ConfigError as refused:
        ModelConfig(**sizes, num_kv_heads=int(re.search(r"num_kv_heads=(\d+) would", str(refused))[1]))


def test_a_block_and_a_config_refuse_the_same_heads_in_the_same_words():
    messages = []
    for build in (lambda: ModelConfig(10, 500, 1, 12), lambda: TransformerBlock(500, 12, 64)):
        with pytest.raises(ConfigError) as refused:
            build()
        messages.append(str(refused.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(
        "num_heads must divide d_model, but 12 does not divide 500; d_model=504 or num_heads=10 would"
    )


# The encoder-decoder

pairs_of_models = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(10, 10**6),
        "d_model": st.sampled_from([48, 96]),
        "num_layers": st.integers(1, 200),
        "num_heads": st.sampled_from([4, 8]),
        "tie_embeddings": st.just(False),
    },
    optional={
        "num_decoder_layers": st.none() | st.integers(1, 200),
        "d_ff": st.none() | st.integers(1, 10**5),
        "target_vocab_size": st.none() | st.integers(10, 10**6),
        "max_seq_len": st.integers(1, 10**6),
        "positions": st.sampled_from(["sinusoidal", "learned"]),
        "start_token_id": st.integers(0, 9),
        "eps": st.floats(1e-12, 0.1),
        "dropout": st.floats(0, 0.9),
    },
).map(lambda fields: EncoderDecoderConfig(**fields))


@given(pairs_of_models)
def test_an_encoder_decoders_config_goes_to_json_and_back_unchanged(config):
    assert EncoderDecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_encoder_decoders_fields_and_their_defaults_are_these():
    fields = {
        **GOOD,
        "num_decoder_layers": 2,
        "d_ff": 192,
        "target_vocab_size": 100,
        "max_seq_len": 512,
        "positions": "sinusoidal",
        "start_token_id": 0,
        "eps": 1e-5,
        "tie_embeddings": True,
        "dropout": 0.1,
    }
    assert list(EncoderDecoderConfig(**GOOD).to_dict().items()) == list(fields.items())  # in this order, too


@pytest.mark.parametrize("name", ["num_decoder_layers", "d_ff", "target_vocab_size"])
def test_an_encoder_decoders_size_of_none_is_filled_in(name):
    assert EncoderDecoderConfig(**GOOD, **{name: None}) == EncoderDecoderConfig(**GOOD)


def test_an_encoder_decoders_config_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast(Any, EncoderDecoderConfig(**GOOD)).d_model = 96


BAD_PAIRS = [
    *[
        ({name: 0}, f"{name} must be an integer of at least 1, not 0")
        for name in (*GOOD, "num_decoder_layers", "d_ff", "target_vocab_size", "max_seq_len")
    ],
    ({"num_decoder_layers": 2.0}, "num_decoder_layers must be an integer of at least 1, not 2.0"),
    ({"num_heads": 5}, "num_heads must divide d_model, but 5 does not divide 48; d_model=50 or num_heads=4 would.$"),
    ({"positions": "rotary"}, "positions must be 'sinusoidal' or 'learned', not 'rotary'"),
    ({"positions": None}, "positions must be 'sinusoidal' or 'learned', not None"),
    (
        {"d_model": 15, "num_heads": 3},
        "d_model must be even, .* but it is 15; d_model=18 would do, or positions='learned'",
    ),
    ({"eps": 0.0}, "eps must be greater than 0, not 0.0"),
    ({"dropout": 1.0}, "dropout must be below 1, not 1.0"),
    ({"tie_embeddings": 1}, "tie_embeddings must be True or False, not 1"),
    (
        {"target_vocab_size": 50},
        "tie_embeddings needs a shared vocabulary, but vocab_size is 100 and target_vocab_size is 50; "
        "tie_embeddings=False",
    ),
    *[
        ({"start_token_id": start}, re.escape(f"start_token_id must be in [0, 100), not {start!r}"))
        for start in (-1, 100, True, 1.0, None)
    ],
    (
        {"target_vocab_size": 50, "tie_embeddings": False, "start_token_id": 50},
        re.escape("start_token_id must be in [0, 50), not 50"),
    ),
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("change", "message"), BAD_PAIRS, ids=[str(change) for change, _ in BAD_PAIRS])
def test_numbers_that_no_encoder_decoder_can_have_are_refused_with_the_rule(change, message):
    with pytest.raises(ConfigError, match=message):
        EncoderDecoderConfig(**{**GOOD, **change})


@given(st.integers(1, 200), st.integers(1, 200))
def test_the_way_out_that_an_encoder_decoders_message_names_is_a_way_out(d_model, num_heads):
    sizes = {"d_model": d_model, "num_heads": num_heads}
    try:
        EncoderDecoderConfig(10, num_layers=1, **sizes)
        assume(False)
    except ConfigError as refused:
        ways_out = re.findall(r"(d_model|num_heads|positions)='?(\w+)", str(refused))
    assert ways_out
    numbers = [{name: int(value)} for name, value in ways_out if name != "positions"]
    for way in numbers:
        EncoderDecoderConfig(10, num_layers=1, **{**sizes, **way})


def test_learned_positions_may_have_an_odd_width():
    assert EncoderDecoderConfig(10, 15, 1, 3, positions="learned").d_model == 15


def test_an_encoder_decoders_config_takes_no_other_fields():
    with pytest.raises(ConfigError, match="an encoder-decoder config has no field named num_kv_heads, rope_theta"):
        EncoderDecoderConfig.from_dict({**GOOD, "rope_theta": 1.0, "num_kv_heads": 2})
    with pytest.raises(ConfigError, match="an encoder-decoder config needs d_model"):
        EncoderDecoderConfig.from_dict({name: value for name, value in GOOD.items() if name != "d_model"})
