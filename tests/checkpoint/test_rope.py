import copy
import json
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from prenorm import RopeScaling
from prenorm.checkpoint.rope import foreign_in_rope_keys, half_split, rope_from_hugging_face, rope_to_hugging_face
from prenorm.errors import ConfigError
from prenorm.ops.rope_frequencies import rope_frequencies

TINY = {
    "vocab_size": 8,
    "hidden_size": 32,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 2048,
}
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
LLAMA3_KEYS = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


EVERY = [
    None,
    RopeScaling("linear", 2.5),
    LLAMA3,
    RopeScaling("dynamic", 2.0, original_max_seq_len=2048),
    RopeScaling("yarn", 4.0, original_max_seq_len=512),
    RopeScaling("yarn", 4.0, 1.0, 4.0, 512, 16.0, 2.0, False, 1.5),
    RopeScaling("longrope", 4.0, original_max_seq_len=512, short_factors=(1.0, 2.0), long_factors=(3.0, 4.0)),
]


@pytest.mark.parametrize("scaling", EVERY)
def test_what_is_written_is_read_back_from_old_keys_new_keys_and_both(scaling):
    keys = rope_to_hugging_face(500000.0, scaling)
    old = {key: keys[key] for key in ("rope_theta", "rope_scaling")}
    new = {"rope_parameters": keys["rope_parameters"]}
    for fields in (keys, old, new):
        assert not list(foreign_in_rope_keys(fields))
        assert rope_from_hugging_face(fields, 2048) == (500000.0, scaling, 1.0)


@pytest.mark.parametrize("kept", [("rope_theta", "rope_scaling"), ("rope_parameters",)])
def test_transformers_reads_the_same_numbers_from_either_keys(kept):
    keys = rope_to_hugging_face(500000.0, LLAMA3)
    theirs = LlamaConfig(hidden_size=64, num_attention_heads=2, **{key: keys[key] for key in kept})
    assert theirs.rope_parameters == keys["rope_parameters"]
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs)
    assert frequencies[-1] == pytest.approx(500000.0 ** (-30 / 32) / 8, rel=1e-6)


def test_silence_means_the_default():
    assert rope_from_hugging_face({}, 2048) == (10000.0, None, 1.0)
    assert rope_from_hugging_face({"rope_scaling": None, "rope_parameters": None}, 2048) == (10000.0, None, 1.0)
    assert rope_from_hugging_face({"rope_scaling": {"type": "linear", "factor": 2}}, 2048)[1] == RopeScaling(
        "linear", 2.0
    )


def test_the_length_before_stretching_is_the_models_own_when_it_is_not_given():
    keys = {key: value for key, value in LLAMA3_KEYS.items() if not key.startswith("original")}
    _, scaling, _ = rope_from_hugging_face({"rope_scaling": keys}, 4096)
    assert scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 4096)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "must agree, but rope_theta gives 10000.0, rope_parameters.rope_theta gives 500000.0; keep one",
        ),
        (
            {"rope_scaling": {"type": "default"}, "rope_parameters": LLAMA3_KEYS},
            'must agree, .* gives no scaling, rope_parameters gives {"rope_type": "llama3", "factor": 8.0',
        ),
        (
            {"rope_scaling": LLAMA3_KEYS, "rope_parameters": {**LLAMA3_KEYS, "rope_theta": 5e5}},
            "rope_parameters.rope_theta gives 500000.0, rope_scaling without a rope_theta gives 10000.0; keep one",
        ),
        ({"rope_theta": None}, "rope_theta must be a finite number or absent, not null"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta must be a finite number or absent, not null"),
        ({"rope_parameters": {"rope_theta": "5"}}, 'rope_parameters.rope_theta must be a finite number, not "5"'),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "rope_scaling.factor must be a finite number, not null"),
        (
            {"rope_parameters": {**LLAMA3_KEYS, "original_max_position_embeddings": 0.5}},
            "rope_parameters.original_max_position_embeddings must be an integer of at least 1, not 0.5",
        ),
        (
            {"rope_parameters": {**LLAMA3_KEYS, "high_freq_factor": 0.5}},
            "rope_parameters.high_freq_factor must be greater than low_freq_factor, but 0.5 is not greater than 1.0",
        ),
        ({"rope_scaling": LLAMA3_KEYS, "rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "must agree"),
        ({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 8.0}}, '"llama3", but type is "linear"'),
        ({"rope_scaling": {"rope_type": "linear"}}, 'rope_scaling: rope_type "linear" needs factor'),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "needs low_freq_factor, high_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor must be at least 1"),
    ],
)
def test_contradictions_and_gaps_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        rope_from_hugging_face(fields, 2048)


def test_every_foreign_key_is_named():
    fields = {
        "rope_scaling": {"rope_type": "mrope", "factor": 4.0, "beta_fast": 32},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5, "mscale": 1.0},
    }
    assert list(foreign_in_rope_keys(fields)) == [
        'rope_scaling has rope_type "mrope", but only default, linear, dynamic, yarn, llama3, longrope are supported',
        'rope_parameters.mscale is not known for rope_type "linear"',
        "rope_parameters.partial_rotary_factor must be 1.0 or absent, not 0.5",
    ]


@pytest.mark.parametrize("rope_type", [None, 3, ["linear"]])
def test_a_rope_type_that_is_no_name_is_refused_as_it_stands(rope_type):
    (problem,) = foreign_in_rope_keys({"rope_scaling": {"rope_type": rope_type, "factor": 2.0}})
    assert problem.startswith(f"rope_scaling has rope_type {json.dumps(rope_type)}, but only default")
    assert list(foreign_in_rope_keys({"rope_scaling": [2.0]})) == ["rope_scaling must be an object or null, not [2.0]"]


# What says nothing beside what does, in transformers too: (keys, base, scaling).
SILENT: dict[str, Any] = {
    "old scaling null": ({"rope_scaling": None, "rope_parameters": {**LLAMA3_KEYS, "rope_theta": 5e5}}, 5e5, LLAMA3),
    "old scaling empty": ({"rope_scaling": {}, "rope_parameters": {**LLAMA3_KEYS, "rope_theta": 5e5}}, 5e5, LLAMA3),
    "old base null": ({"rope_theta": None, "rope_parameters": {**LLAMA3_KEYS, "rope_theta": 5e5}}, 5e5, LLAMA3),
    "new key null": ({"rope_theta": 5e5, "rope_scaling": LLAMA3_KEYS, "rope_parameters": None}, 5e5, LLAMA3),
    "new key empty": ({"rope_theta": 5e5, "rope_scaling": LLAMA3_KEYS, "rope_parameters": {}}, 5e5, LLAMA3),
    "base in the old scaling": ({"rope_scaling": {**LLAMA3_KEYS, "rope_theta": 5e5}}, 5e5, LLAMA3),
    "type null": (
        {"rope_scaling": {"type": None, "rope_type": "linear", "factor": 2.0}},
        1e4,
        RopeScaling("linear", 2.0),
    ),
    "a factor of nothing": ({"rope_scaling": {"type": "default", "factor": None}}, 1e4, None),
    "parts of another type": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2, "low_freq_factor": None, "attention_factor": None}},
        1e4,
        RopeScaling("linear", 2.0),
    ),
    "partial_rotary_factor null": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": None}},
        1e4,
        None,
    ),
    "a length that is a float": (
        {"rope_scaling": {**LLAMA3_KEYS, "original_max_position_embeddings": 8192.0}},
        1e4,
        LLAMA3,
    ),
}


@pytest.mark.parametrize("silent", SILENT)
def test_null_and_empty_say_nothing_as_in_transformers(silent):
    fields, theta, scaling = SILENT[silent]
    assert not list(foreign_in_rope_keys(fields))
    assert rope_from_hugging_face(fields, 2048) == (theta, scaling, 1.0)
    theirs = LlamaForCausalLM(LlamaConfig(**TINY, **copy.deepcopy(fields))).model.rotary_emb
    assert_close(theirs.inv_freq, rope_frequencies(16, theta, scaling).float(), rtol=1e-5, atol=0)


def test_half_split_brings_each_pair_from_neighbours_to_half_a_head_apart():
    assert half_split(torch.arange(12), 6).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    rows = torch.randn(12, 5)
    assert torch.equal(half_split(rows, 6), rows[half_split(torch.arange(12), 6)])
