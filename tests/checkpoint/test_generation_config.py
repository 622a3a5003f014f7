"""What a generation_config.json says, in our words: as transformers takes it, or refused by name."""

import pytest
from transformers import GenerationConfig

from prenorm.checkpoint.generation_config import settings_from_hugging_face
from prenorm.errors import CheckpointError

SAMPLED = {"temperature": 1.0, "top_k": 50}


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {"temperature": 0.0}),
        ({"do_sample": None, "temperature": 0.6, "top_k": 3, "eos_token_id": 2}, {"temperature": 0.0}),
        ({"do_sample": False, "repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
        ({"do_sample": True}, SAMPLED),
        ({"do_sample": True, "top_k": 0, "min_p": 0.0}, {"temperature": 1.0}),
        (
            {"do_sample": True, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
            {**SAMPLED, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
        ),
        (
            {"do_sample": True, "max_new_tokens": 7, "max_length": 20},
            {**SAMPLED, "max_new_tokens": 7, "max_length": 20},
        ),
        ({"do_sample": True, "stop_strings": ["a", "bc"]}, {**SAMPLED, "stop": ("a", "bc")}),
        ({"stop_strings": "x", "num_beams": 1, "typical_p": 1.0}, {"temperature": 0.0, "stop": ("x",)}),
    ],
)
def test_settings_are_read_as_transformers_reads_them(fields, settings):
    assert settings_from_hugging_face(fields, "the file") == settings


def test_what_transformers_writes_by_default_is_understood():
    defaults = GenerationConfig()._get_default_generation_params()
    assert settings_from_hugging_face(defaults, "the file") == {
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "max_length": 20,
    }
    every = GenerationConfig(do_sample=True).to_dict()
    assert settings_from_hugging_face(every, "the file") == SAMPLED


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 2}, "num_beams is 2"),
        ({"no_repeat_ngram_size": 3, "typical_p": 0.5}, "no_repeat_ngram_size is 3, typical_p is 0.5, which prenorm"),
        ({"suppress_tokens": [3]}, r"suppress_tokens is \[3\]"),
        ({"wonder": 1}, "wonder is not known"),
        ({"do_sample": True, "temperature": -1}, "temperature must be at least 0"),
        ({"do_sample": True, "top_p": 2}, "top_p is a probability"),
        ({"do_sample": "yes"}, "do_sample must be true or false"),
        ({"do_sample": True, "top_k": -3}, "top_k must be an integer of at least 1, not -3"),
        ({"repetition_penalty": "a"}, "repetition_penalty must be a finite number"),
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer of at least 1, not -1"),
        ({"max_length": 1.5}, "max_length must be an integer"),
        ({"stop_strings": [""]}, "stop_strings must be texts"),
        ({"stop_strings": {"a": 1}}, "stop_strings must be texts"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(fields, message):
    with pytest.raises(CheckpointError, match=f"the file: .*{message}"):
        settings_from_hugging_face(fields, "the file")
