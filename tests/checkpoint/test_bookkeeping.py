"""Every key that is passed over, on tiny models of transformers: each opens with it, with the same logits."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prenorm.checkpoint.bookkeeping import HARMLESS_VALUES, NO_INFLUENCE
from prenorm.checkpoint.layouts import config_from_hugging_face
from prenorm.checkpoint.writing import config_to_hugging_face
from prenorm.errors import CheckpointError

from .examples import config
from .families import FAMILIES as OTHERS
from .families import fields_of as fields_of_family

FAMILIES: dict[str, Any] = {
    "llama": {},
    "mistral": {"window": 5},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 6},
}
# What these keys may hold, unless a number or any text would do.
HELD = {
    "architectures": ["AForCausalLM"],
    "dtype": "float32",
    "torch_dtype": "float32",
    "_attn_implementation": "eager",
    "attn_implementation": "eager",
    "_pre_quantization_dtype": "bfloat16",
    "initializer_range": 0.5,
    "attention_dropout": 0.5,
    "residual_dropout": 0.5,
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "hidden_dropout": 0.5,
    "attn_pdrop": 0.5,
    "attention_probs_dropout_prob": 0.5,
    "hidden_dropout_prob": 0.5,
    "classifier_dropout": 0.5,
    "embedding_dropout": 0.5,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "regression",
    "task_specific_params": {"summarization": {"max_length": 5}},
    "transformers.js_config": {"dtype": "q4"},
    "bad_words_ids": [[5]],
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5],
    "exponential_decay_length_penalty": [2, 1.5],
    "early_stopping": True,
}
TEXTS = (
    "transformers_version",
    "name",
    "_commit_hash",
    "tokenizer_class",
    "prefix",
    "finetuning_task",
    "unsloth_version",
)
NUMBERS = (
    "num_",
    "max_",
    "min_",
    "_id",
    "_p",
    "_k",
    "penalty",
    "size",
    "alpha",
    "_tp",
    "length",
    "cutoff",
    "temperature",
)


def value_of(key):
    if key in HELD:
        return HELD[key]
    if "implementation" in key:
        return "eager" if key.startswith("experts") else None
    if any(part in key for part in TEXTS):
        return "4.30.0"
    return 3 if any(part in key for part in NUMBERS) else True


def fields_of(family):
    fields = config_to_hugging_face(config(**FAMILIES[family]))
    assert fields["model_type"] == family
    return fields


def logits_of(fields, folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    read = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(read, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):  # whatever the file says of how weights begin
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
        return model(torch.arange(1, 13)[None])[0]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_that_is_passed_over_changes_a_logit_of_transformers(family, tmp_path):
    fields = fields_of(family)
    wanted = logits_of(fields, tmp_path / "plain")
    for index, key in enumerate(sorted(NO_INFLUENCE)):
        marked = fields | {key: value_of(key)}
        assert torch.equal(logits_of(marked, tmp_path / str(index)), wanted), key
        assert config_from_hugging_face(marked)[0] == config(**FAMILIES[family]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OTHERS if name == OTHERS[name][0]])
def test_nor_does_it_in_the_other_families(name, tmp_path):
    fields = fields_of_family(name)
    wanted, config = logits_of(fields, tmp_path / "plain"), config_from_hugging_face(fields)[0]
    for index, key in enumerate(sorted(NO_INFLUENCE - {"bos_token_id", "pad_token_id"})):
        marked = fields | {key: value_of(key)}
        assert torch.equal(logits_of(marked, tmp_path / str(index)), wanted), key
        assert config_from_hugging_face(marked)[0] == config, key


@pytest.mark.sampled(4)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_harmless_value_changes_a_logit_of_transformers(family, tmp_path):
    fields = fields_of(family)
    wanted = logits_of(fields, tmp_path / "plain")
    for key, (first, *_) in HARMLESS_VALUES.items():
        if key == "auto_map" or (key in ("sliding_window", "use_sliding_window") and family == "mistral"):
            continue  # AutoConfig looks inside a null; a window is not harmless where there is one
        marked = fields | {key: first}
        assert torch.equal(logits_of(marked, tmp_path / key), wanted), key
        assert config_from_hugging_face(marked)[0] == config(**FAMILIES[family]), key


@pytest.mark.parametrize("key", ["attention_multiplier", "hidden_activation", "rope_condense_ratio", "logit_scale"])
def test_a_key_that_nobody_knows_is_refused_by_name(key):
    with pytest.raises(CheckpointError, match=f"but {key} is not known"):
        config_from_hugging_face(fields_of("llama") | {key: 1.0})


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_layer_types_that_say_what_is_done_anyway_change_nothing(family, tmp_path):
    fields = fields_of(family)
    kinds = ["sliding_attention" if family == "mistral" else "full_attention"] * 2
    assert torch.equal(logits_of(fields | {"layer_types": kinds}, tmp_path / "a"), logits_of(fields, tmp_path / "b"))
    assert config_from_hugging_face(fields | {"layer_types": kinds})[0] == config(**FAMILIES[family])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"layer_types": ["sliding_attention"] * 2},
            "layer_types has sliding_attention, but sliding_window is not set",
        ),
        (
            "mistral",
            {"layer_types": ["full_attention"] * 2},
            "layer_types has full_attention, but sliding_window is 5",
        ),
        (
            "llama",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "model_type ministral or qwen2 supports both kinds",
        ),
        ("llama", {"layer_types": ["full_attention"]}, "layer_types must name each of the 2 layers"),
        ("mistral", {"use_sliding_window": False}, "use_sliding_window is false, but sliding_window is 5"),
        ("llama", {"use_sliding_window": True}, "use_sliding_window must be false or absent, not true"),
        ("llama", {"is_causal": False}, "is_causal must be true or absent, not false"),
        ("llama", {"load_in_4bit": True}, "load_in_4bit must be false or absent, not true"),
        ("llama", {"add_cross_attention": True}, "add_cross_attention must be false or absent, not true"),
        ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads must be {} or absent, not"),
        ("llama", {"auto_map": {"AutoModel": "a.B"}}, "auto_map must be null or absent"),
    ],
)
def test_what_would_change_the_maths_is_refused(family, changes, message):
    with pytest.raises(CheckpointError, match=message):
        config_from_hugging_face(fields_of(family) | changes)
