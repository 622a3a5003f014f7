import dataclasses
import json
import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prenorm import ConfigError, ModelConfig, RopeScaling, TransformerBlock

GOOD = {"vocab_size": 100, "d_model": 48, "num_layers": 2, "num_heads": 4}

scalings = st.builds(
    RopeScaling,
    kind=st.sampled_from(["linear", "llama3"]),
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
        ModelConfig(**GOOD).d_model = 96


BAD = [
    *[({name: 0}, f"{name} must be a whole number of at least 1, not 0") for name in GOOD],
    *[({name: -1}, f"{name} must be a whole number of at least 1, not -1") for name in GOOD],
    ({"d_model": 48.0}, "d_model must be a whole number of at least 1, not 48.0"),
    ({"num_layers": True}, "num_layers must be a whole number of at least 1, not True"),
    ({"vocab_size": "100"}, "vocab_size must be a whole number of at least 1, not '100'"),
    ({"num_heads": 5}, "num_heads must divide d_model, but 5 does not divide 48; d_model=50 or num_heads=4 would"),
    ({"num_heads": 48}, "head_dim must be even, .* but it is 1 .d_model 48, num_heads 48.; head_dim=2 would do"),
    ({"head_dim": 7}, "head_dim must be even, .* but it is 7 .*; head_dim=8 would do"),
    ({"head_dim": 0}, "head_dim must be a whole number of at least 1, not 0"),
    ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, but 3 does not divide 4; num_kv_heads=2 would"),
    ({"num_kv_heads": 8}, "num_kv_heads must divide num_heads, but 8 does not divide 4; num_kv_heads=4 would"),
    ({"num_kv_heads": 0}, "num_kv_heads must be a whole number of at least 1, not 0"),
    ({"d_ff": 0}, "d_ff must be a whole number of at least 1, not 0"),
    ({"max_seq_len": 0}, "max_seq_len must be a whole number of at least 1, not 0"),
    ({"rope_theta": 0.0}, "rope_theta must be greater than 0, not 0.0"),
    ({"rope_theta": math.inf}, "rope_theta must be a finite number, not inf"),
    ({"rope_theta": "10000"}, "rope_theta must be a finite number, not '10000'"),
    ({"eps": 0.0}, "eps must be greater than 0, not 0.0"),
    ({"eps": math.nan}, "eps must be a finite number, not nan"),
    ({"dropout": -0.1}, "dropout must be at least 0, not -0.1"),
    ({"dropout": 1.0}, "dropout must be below 1, not 1.0"),
    ({"window": 0}, "window must be a whole number of at least 1, not 0"),
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
    ({"kind": "yarn"}, "rope_scaling kind must be 'linear' or 'llama3', not 'yarn'"),
    ({"factor": 0.5}, "rope_scaling factor must be at least 1, not 0.5"),
    ({"factor": math.inf}, "rope_scaling factor must be a finite number"),
    ({"low_freq_factor": 0.0}, "rope_scaling low_freq_factor must be greater than 0"),
    (
        {"high_freq_factor": 1.0},
        "high_freq_factor must be greater than low_freq_factor, but 1.0 is not greater than 1.0",
    ),
    ({"original_max_seq_len": 0}, "rope_scaling original_max_seq_len must be a whole number of at least 1"),
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
