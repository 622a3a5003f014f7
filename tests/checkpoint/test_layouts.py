import contextlib
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from prenorm import ModelConfig, RopeScaling
from prenorm.checkpoint.layouts import config_from_hugging_face
from prenorm.checkpoint.writing import config_to_hugging_face, family_of, weights_to_hugging_face
from prenorm.errors import CheckpointError

from .examples import IN_A_FAMILY, IN_NO_FAMILY, config, tensors_of

EVERY = {name: changes for name, (_, changes) in IN_A_FAMILY.items()} | IN_NO_FAMILY

# As these models were published, less what repeats.
PUBLISHED = {
    "Llama 3.2 1B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.45.0.dev0",
            "use_cache": True,
            "vocab_size": 128256,
        },
        ModelConfig(
            vocab_size=128256,
            d_model=2048,
            num_layers=16,
            num_heads=32,
            num_kv_heads=8,
            d_ff=8192,
            max_seq_len=131072,
            rope_theta=500000.0,
            rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
            eps=1e-5,
            tie_embeddings=True,
        ),
    ),
    "Mistral 7B v0.1": (
        {
            "architectures": ["MistralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.34.0.dev0",
            "use_cache": True,
            "vocab_size": 32000,
        },
        ModelConfig(
            vocab_size=32000,
            d_model=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            d_ff=14336,
            max_seq_len=32768,
            eps=1e-5,
            window=4096,
        ),
    ),
    "Qwen2.5 0.5B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 896,
            "initializer_range": 0.02,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.1",
            "use_cache": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        ModelConfig(
            vocab_size=151936,
            d_model=896,
            num_layers=24,
            num_heads=14,
            num_kv_heads=2,
            d_ff=4864,
            max_seq_len=32768,
            rope_theta=1000000.0,
            qkv_bias=True,
            tie_embeddings=True,
        ),
    ),
    "Qwen3 0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        ModelConfig(
            vocab_size=151936,
            d_model=1024,
            num_layers=28,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            d_ff=3072,
            max_seq_len=40960,
            rope_theta=1000000.0,
            qk_norm=True,
            tie_embeddings=True,
        ),
    ),
}


def written(**changes):
    return config_to_hugging_face(config(**changes))


@pytest.mark.parametrize("example", IN_A_FAMILY)
def test_every_model_has_its_family(example):
    family, changes = IN_A_FAMILY[example]
    assert family_of(config(**changes)) == family
    assert written(**changes)["architectures"] == [type(AutoConfig.for_model(family)).__name__[:-6] + "ForCausalLM"]


@pytest.mark.parametrize("example", IN_NO_FAMILY)
def test_what_no_family_has_is_a_prenorm_model(example):
    assert family_of(config(**IN_NO_FAMILY[example])) == "prenorm"


@pytest.mark.parametrize("example", EVERY)
@pytest.mark.parametrize("eos_token_ids", [(), (3,), (0, 60)])
def test_a_config_that_is_written_is_read_back_unchanged(example, eos_token_ids):
    original = config(**EVERY[example], dropout=0.25)
    fields = config_to_hugging_face(original, eos_token_ids=eos_token_ids, dtype=torch.bfloat16)
    assert config_from_hugging_face(fields) == (original, eos_token_ids)
    assert fields["dtype"] == "bfloat16"


@given(
    st.builds(
        config,
        num_heads=st.sampled_from([2, 4, 5]),
        num_kv_heads=st.just(1),
        head_dim=st.sampled_from([2, 6, 12]),
        rope_theta=st.floats(1.0, 1e9),
        rope_scaling=st.none() | st.builds(RopeScaling, st.sampled_from(["linear", "llama3"]), st.floats(1.0, 1e3)),
        eps=st.floats(1e-12, 1e-2),
        window=st.none() | st.integers(1, 100),
        qk_norm=st.booleans(),
        qkv_bias=st.booleans(),
        o_bias=st.booleans(),
        tie_embeddings=st.booleans(),
    )
)
def test_no_combination_is_lost(original):
    assert config_from_hugging_face(config_to_hugging_face(original)) == (original, ())


@pytest.mark.parametrize("example", IN_A_FAMILY)
def test_transformers_reads_the_numbers_that_were_meant(example):
    family, changes = IN_A_FAMILY[example]
    meant = config(**changes)
    theirs = AutoConfig.for_model(**config_to_hugging_face(meant, eos_token_ids=(3, 4)))
    assert theirs.model_type == family
    assert (theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size) == (61, 24, 40)
    assert (theirs.num_hidden_layers, theirs.num_attention_heads) == (2, meant.num_heads)
    assert (theirs.num_key_value_heads, theirs.head_dim) == (meant.num_kv_heads, meant.head_dim)
    assert (theirs.rms_norm_eps, theirs.rope_parameters["rope_theta"]) == (meant.eps, meant.rope_theta)
    assert (theirs.tie_word_embeddings, theirs.max_position_embeddings) == (meant.tie_embeddings, 64)
    assert getattr(theirs, "sliding_window", None) == meant.window
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == ([3, 4], None, None)


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_configs_are_understood(model):
    fields, expected = PUBLISHED[model]
    read, eos_token_ids = config_from_hugging_face(fields)
    assert read == expected
    assert list(eos_token_ids) == (fields["eos_token_id"] if "Llama" in model else [fields["eos_token_id"]])


# As first published: with keys that the classes of today do not read.
GPTS = {
    "gpt2": {
        **{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1},
        **{"bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02},
        **{"layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12},
        **{"n_layer": 12, "n_positions": 1024, "n_special": 0, "predict_special_tokens": True, "resid_pdrop": 0.1},
        **{"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True},
        **{"summary_type": "cls_index", "summary_use_proj": True, "_num_labels": 1, "output_past": True},
        **{"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257},
    },
    "gpt-neox-20b": {
        **{"architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 0},
        **{"eos_token_id": 0, "hidden_act": "gelu_fast", "hidden_dropout_prob": 0, "hidden_size": 6144},
        **{"initializer_range": 0.02, "intermediate_size": 24576, "layer_norm_eps": 1e-05},
        **{"max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 64},
        **{"num_hidden_layers": 44, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False},
        **{"torch_dtype": "float16", "transformers_version": "4.19.0.dev0", "use_cache": True, "vocab_size": 50432},
    },
}


@pytest.mark.parametrize("name", GPTS)
def test_presets_are_what_their_published_files_say(name):
    assert config_from_hugging_face(GPTS[name]) == (ModelConfig.preset(name), (GPTS[name]["eos_token_id"],))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_absent_keys_mean_what_the_config_class_says(family):
    theirs = AutoConfig.for_model(family)
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    read, eos_token_ids = config_from_hugging_face(
        {"model_type": family} | {key: getattr(theirs, key) for key in required}
    )
    assert read.num_kv_heads == theirs.num_key_value_heads
    assert read.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert read.max_seq_len == theirs.max_position_embeddings
    assert read.rope_theta == theirs.rope_parameters["rope_theta"]
    assert read.eps == theirs.rms_norm_eps
    assert read.window == getattr(theirs, "sliding_window", None)
    assert read.tie_embeddings == theirs.tie_word_embeddings
    assert read.o_bias == getattr(theirs, "attention_bias", False)
    assert eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))


def test_a_key_of_another_family_that_is_null_says_nothing():
    assert config_from_hugging_face(written() | {"final_logit_softcapping": None, "layer_types": None})[0] == config()
    mistral = written(window=5) | {"attention_bias": None}
    assert config_from_hugging_face(mistral)[0] == config(window=5)


NULLABLE = ("num_key_value_heads", "head_dim", "sliding_window", "layer_types", "eos_token_id", "prenorm_dropout")
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SWITCHES = ("tie_word_embeddings", "attention_bias", "use_sliding_window")
KEYS = (*SIZES, *SWITCHES, "max_position_embeddings", "rms_norm_eps", "hidden_act", "max_window_layers")


@pytest.mark.parametrize("key", [*NULLABLE, *KEYS])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_null_means_what_it_means_to_the_config_class_or_is_refused_by_name(family, key):
    fields = {"model_type": family, **dict.fromkeys(("bos_token_id", "pad_token_id"))}
    fields |= {"vocab_size": 61, "hidden_size": 128, "intermediate_size": 40, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 32, "max_position_embeddings": 64, "use_sliding_window": True}
    fields |= {"max_window_layers": 0, key: None}
    if family in ("llama", "mistral"):
        fields = {name: value for name, value in fields.items() if "window" not in name or name == key}
    try:
        read, eos_token_ids = config_from_hugging_face(fields)
    except CheckpointError as refused:
        assert key in str(refused)  # noqa: PT017 (either is right)
        with pytest.raises(Exception, match=r"NoneType|unsupported operand"):
            AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
        return
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), attn_implementation="eager")
    attention, config = theirs.model.layers[0].self_attn, theirs.config
    assert (read.num_kv_heads, read.head_dim) == (config.num_key_value_heads, attention.head_dim)
    assert (read.eps, read.tie_embeddings) == (config.rms_norm_eps, config.tie_word_embeddings)
    assert read.window == getattr(config, "sliding_window", None)
    assert (read.qkv_bias, read.o_bias) == (attention.q_proj.bias is not None, attention.o_proj.bias is not None)
    assert eos_token_ids == (() if config.eos_token_id is None else (config.eos_token_id,))


def test_what_a_message_names_and_the_file_does_not_say_is_told():
    fields = written(window=5) | {"num_attention_heads": 6}
    del fields["num_key_value_heads"]
    with pytest.raises(CheckpointError) as refused:
        config_from_hugging_face(fields)
    assert str(refused.value) == (
        "config.json: num_key_value_heads must divide num_attention_heads, but 8 does not divide 6; "
        "num_key_value_heads=6 would. num_key_value_heads is absent, so it defaults to 8."
    )


@pytest.mark.parametrize("wrong", ["5", 5.5, True, -5, 0, 10**400, [5], {"a": 5}])
@pytest.mark.parametrize("key", [*KEYS, *NULLABLE, "rope_theta"])
@pytest.mark.usefixtures("shapes_unchecked")
def test_whatever_stands_in_the_place_of_a_number_is_refused_under_the_files_own_name(key, wrong):
    fields = {name: value for name, value in written(qk_norm=True, window=5).items() if "rope" not in name}
    with contextlib.suppress(CheckpointError):  # some of them are numbers that may stand there
        config_from_hugging_face(fields | {key: wrong})
        return
    with pytest.raises(CheckpointError, match=key) as refused:
        config_from_hugging_face(fields | {key: wrong})
    ours = (
        r"d_model|num_layers|num_heads|num_kv_heads|d_ff|max_seq_len|\beps\b|qkv_bias|o_bias|tie_embeddings|True|None"
    )
    assert not re.search(ours, str(refused.value))


def test_everything_that_is_missing_or_foreign_is_named_in_one_message():
    fields = written() | {
        "final_logit_softcapping": 30.0,
        "sliding_window": 8,
        "quantization_config": {"quant_method": "fp8"},
        "rope_scaling": {"rope_type": "mrope", "factor": 4.0},
    }
    del fields["hidden_size"]
    with pytest.raises(CheckpointError) as raised:
        config_from_hugging_face(fields)
    assert str(raised.value) == (
        "config.json (model_type llama) must be understood as a whole, but hidden_size is missing; "
        'final_logit_softcapping is not known; quantization_config must be null or absent, not {"quant_method": '
        '"fp8"}; sliding_window must be null or absent, not 8; rope_scaling has rope_type "mrope", but only default, '
        "linear, dynamic, yarn, llama3, longrope are supported. Nothing is "
        "ignored, because each of these may change what the model computes."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, 'model_type must be one of llama, mistral, .*, prenorm, not "bert"'),
        ({"model_type": None}, "not null"),
        ({"model_type": ["llama"]}, r"not \[\"llama\"\]"),
        ({"intermediate_size": None}, "intermediate_size is null"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "auto_map must be null or absent"),
        ({"rope_theta": float("nan"), "rope_parameters": None}, "rope_theta must be a finite number, not NaN"),
        ({"rope_theta": {"__float__": "NaN"}, "rope_parameters": None}, "rope_theta must be a finite number"),
        ({"rope_theta": 10**400, "rope_parameters": None}, "rope_theta must be a finite number, not one of 1329 bits"),
        ({"hidden_size": -24}, "hidden_size must be an integer of at least 1, not -24"),
        ({"hidden_size": 24.0}, "hidden_size must be an integer of at least 1, not 24.0"),
        ({"hidden_size": "24"}, 'hidden_size must be an integer of at least 1, not "24"'),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads, but 3"),
        ({"head_dim": 5}, "head_dim must be even"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings must be at most 16777216, not 1000000000"),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings must be true or false, not "no"'),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be greater than 0, not 0"),
        ({"eos_token_id": 61}, "eos_token_id must be ids from 0 to 60, not 61"),
        ({"eos_token_id": [1, "2"]}, 'eos_token_id must be ids from 0 to 60, not "2"'),
        ({"prenorm_dropout": 1.5}, "prenorm_dropout must be below 1"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_numbers_that_no_model_has_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=f"^folder/config.json.*{message}"):
        config_from_hugging_face(written() | changes, source="folder/config.json")


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, 5),
        ({"layer_types": None}, 5),
        ({"layer_types": ["full_attention"] * 2}, None),
        ({"layer_types": None, "max_window_layers": 2}, None),
        ({"layer_types": None, "use_sliding_window": False}, None),
        ({"layer_types": None, "sliding_window": None}, None),
    ],
)
def test_a_qwen_window_holds_for_all_layers_or_none(changes, window):
    read, _ = config_from_hugging_face(written(qkv_bias=True, window=5) | changes)
    assert read.window == window
    assert read.family is None


@pytest.mark.parametrize(
    "changes",
    [{"layer_types": ["full_attention", "sliding_attention"]}, {"layer_types": None, "max_window_layers": 1}],
)
def test_a_qwen_may_have_windows_in_some_layers(changes):
    read, _ = config_from_hugging_face(written(qkv_bias=True, window=5) | changes)
    assert (read.window, read.family.windows) == (None, (0, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_types": ["full_attention", None]},
            "layer_types must be full_attention or sliding_attention, not null",
        ),
        ({"layer_types": ["chunked_attention"] * 2}, 'not "chunked_attention"'),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types must name each of the 2 layers"),
        ({"layer_types": "sliding_attention"}, "layer_types must name each of the 2 layers"),
        ({"use_sliding_window": False}, "layer_types has sliding_attention, but"),
        ({"use_sliding_window": "no"}, "use_sliding_window must be true or false"),
        ({"max_window_layers": "all"}, 'max_window_layers must be an integer of at least 0, not "all"'),
    ],
)
def test_contradictory_qwen_windows_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        config_from_hugging_face(written(qkv_bias=True, window=5) | changes)


def test_only_what_is_rotated_is_reordered_and_only_in_an_interleaved_model():
    plain = config(qk_norm=True, qkv_bias=True, o_bias=True)
    tensors = tensors_of(plain)
    interleaved = config(qk_norm=True, qkv_bias=True, o_bias=True, rope_interleaved=True)
    fields = config_to_hugging_face(plain)
    same, moved = (weights_to_hugging_face(one, tensors, fields) for one in (plain, interleaved))
    changed = {name.split(".", 3)[3] for name in same if not torch.equal(same[name], moved[name])}
    assert changed == {
        f"self_attn.{name}"
        for name in ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias", "q_norm.weight", "k_norm.weight")
    }


def test_an_interleaved_model_is_described_as_a_half_split_one():
    read, _ = config_from_hugging_face(written(rope_interleaved=True))
    assert read == config()
