"""A config.json that contradicts itself, or asks for what is not served, is refused by the name of the key."""

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN

from prenorm import TransformerLM, explain
from prenorm.checkpoint.families.layout import ACTIVATIONS
from prenorm.checkpoint.layouts import LAYOUTS, config_from_hugging_face
from prenorm.checkpoint.writing import naming_among, weights_from_hugging_face
from prenorm.errors import CheckpointError
from prenorm.generation.native_decode.decoder import NativeDecoder
from prenorm.kernels.cpu import native
from prenorm.ops.activations import ACTIVATIONS as OURS
from prenorm.ops.backends import NOT_SERVED

from .families import FAMILIES, FULL, MIXED, SLIDING, fields_of, in_own_words, rope


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_are_understood(name):
    config_from_hugging_face(fields_of(name))


REFUSED = [
    ("llama", {"hidden_act": "mish"}, 'hidden_act must be one of silu, .*, not "mish"'),
    ("llama", {"hidden_act": None}, "hidden_act must be one of"),
    ("llama", {"mlp_bias": "no"}, "mlp_bias must be true or false"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1 or absent"),
    ("llama", {"original_max_position_embeddings": 64}, "original_max_position_embeddings is not known"),
    ("llama", rope("dynamic", factor=2.0, original_max_position_embeddings=64), "original_max_position_embeddings is"),
    ("llama", rope("dynamic", factor=0.5), "rope_parameters.factor must be at least 1, not 0.5"),
    ("llama", rope("dynamic"), 'rope_type "dynamic" needs factor'),
    ("llama", rope("yarn"), 'rope_type "yarn" needs factor'),
    ("llama", rope("yarn", factor=4.0, beta_fast=1, beta_slow=2), "beta_fast must be greater than beta_slow, but 1.0"),
    ("llama", rope("yarn", factor=4.0, truncate="yes"), "rope_parameters.truncate must be true or false"),
    ("llama", rope("yarn", factor=4.0, attention_factor=0), "attention_factor must be greater than 0, not 0"),
    ("llama", rope("yarn", factor=4.0, mscale="a", mscale_all_dim=1), "rope_parameters.mscale must be a finite number"),
    ("llama", rope("yarn", 0.5, factor=4.0), "rope_theta must be greater than 1 for yarn"),
    ("llama", rope("yarn", factor=4.0, finetuned=True), "rope_parameters.finetuned is not known"),
    ("llama", rope("proportional", factor=4.0), 'rope_type "proportional", but only'),
    ("llama", rope("longrope", factor=4.0), "needs short_factor, long_factor"),
    (
        "llama",
        rope("longrope", factor=4.0, short_factor=[1.0] * 3, long_factor=[1.0] * 4),
        "short_factors must have one number for each of the 4 pairs that are rotated, but has 3",
    ),
    (
        "llama",
        rope("longrope", short_factor=[1.0] * 4, long_factor="4"),
        "rope_parameters.long_factor must be a number",
    ),
    ("llama", rope("longrope", short_factor=[1.0] * 4, long_factor=[-1.0] * 4), "long_factor must be greater than 0"),
    ("mistral", {"layer_types": MIXED}, "model_type ministral or qwen2 supports both kinds"),
    ("granite", {"layer_types": [SLIDING] * 3}, "layer_types has sliding_attention, but sliding_window is not set"),
    ("granite", {"sliding_window": 50}, "sliding_window must be null or absent, not 50"),
    ("ministral", {"head_dim": None}, "head_dim must be given"),
    ("ministral", {"sliding_window": None}, "layer_types has sliding_attention, but sliding_window is not set"),
    ("ministral", {"layer_types": [FULL, "linear_attention", FULL]}, 'not "linear_attention"'),
    ("qwen2, layer types", {"use_sliding_window": False}, "but use_sliding_window and sliding_window set no window"),
    ("qwen2", {"head_dim": None}, "head_dim is null"),
    (
        "smollm3",
        {"no_rope_layers": [1, 0]},
        r"must say 0 or 1 of each of the 3 layers, but it is \[1, 0",
    ),
    ("smollm3", {"no_rope_layers": [1, 0, 2]}, "no_rope_layers must say 0 or 1"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval must be an integer of at least 1, not 0"),
    ("smollm3", {"layer_types": MIXED}, "but use_sliding_window and sliding_window set no window"),
    ("phi3", rope("linear", factor=2.0), 'rope_type "linear", but only default, longrope are supported'),
    (
        "phi3",
        {"partial_rotary_factor": 0.4},
        "must give an even number of features .* 0.4 of head_dim 8 is 3",
    ),
    ("phi3", {"partial_rotary_factor": None}, "partial_rotary_factor is null"),
    ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor must be at most 1"),
    ("phi3, longrope", {"original_max_position_embeddings": 128}, "is 64, but original_max_position_embeddings is 128"),
    ("phi3", {"lm_head_bias": True}, "lm_head_bias must be false or absent"),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Other"}}, "auto_map must be null or absent"),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "a/b--modeling_phi3.Other"}}, "auto_map must be null or absent"),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": ["modeling_phi3.Phi3ForCausalLM"]}}, "auto_map must be null or"),
    ("phi3", {"auto_map": {"AutoTokenizer": None}}, "auto_map must be null or absent"),
    ("olmo2", {"clip_qkv": 8.0}, "clip_qkv is not known"),
    ("granite", {"logits_scaling": 0}, "logits_scaling must be greater than 0"),
    ("granite", {"residual_multiplier": "1"}, "residual_multiplier must be a finite number"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be false or absent"),
    ("gemma", {"hidden_activation": "silu"}, 'hidden_activation is "silu", which is not what the model runs'),
    ("gemma", {"head_dim": None}, "head_dim is null"),
    ("gemma2", {"hidden_act": "silu"}, 'hidden_act is "silu", which is not what the model runs'),
    ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping must be greater than 0"),
    ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping must be greater than 0"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be greater than 0"),
    ("gemma2", {"sliding_window": None}, "layer_types has sliding_attention, but sliding_window is not set"),
    ("gemma2", {"sliding_window_size": 40}, "sliding_window_size and sliding_window differ"),
    ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping must be null or absent"),
    ("gemma3_text", {"rope_theta": 5.0}, "give different bases of rotary embedding"),
    ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "contradict each other"),
    ("gemma3_text", rope("default"), "rope_parameters.rope_theta is not known, where full_attention"),
    ("gemma3_text", {"rope_parameters": {FULL: 5}}, "rope_parameters.full_attention must be an object or null, not 5"),
    ("gemma3_text", {"_sliding_window_pattern": 3}, "_sliding_window_pattern differ"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must be an integer of at least 1"),
    ("glm", {"partial_rotary_factor": None}, "partial_rotary_factor is null"),
    ("glm", {"mlp_bias": True}, "mlp_bias must be false or absent"),
    ("olmo", {"clip_qkv": 0.0}, "clip_qkv must be greater than 0"),
    ("olmo", {"rms_norm_eps": 1e-6}, "rms_norm_eps is not known"),
    ("starcoder2", {"use_bias": None}, "use_bias must be true or false"),
    ("starcoder2", {"norm_epsilon": 0}, "norm_epsilon must be greater than 0"),
    ("nemotron", {"partial_rotary_factor": None}, "partial_rotary_factor is null"),
    ("nemotron", {"num_key_value_heads": None}, "num_key_value_heads is null"),
    ("cohere", {"use_qk_norm": "yes"}, "use_qk_norm must be true or false"),
    ("cohere", {"logit_scale": None}, "logit_scale must be a finite number"),
    ("gpt2", {"n_embd": None}, "n_embd is null"),
    ("gpt2", {"n_embd": 33}, "n_head must divide n_embd, but 4 does not divide 33"),
    ("gpt2", {"n_inner": 0}, "n_inner must be an integer of at least 1, not 0"),
    ("gpt2", {"n_positions": None}, "n_positions is null"),
    ("gpt2", {"hidden_size": 32}, "hidden_size is not known"),
    ("gpt2", {"head_dim": 16}, "head_dim must be n_embd / n_head in this family"),
    ("gpt2", {"rope_theta": 1e4}, "rope_theta must be null or absent, not 10000.0: positions are learned"),
    ("gpt2", rope("linear", factor=2.0), "rope_parameters must be null or absent"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention must be false or absent"),
    ("gpt2", {"scale_attn_weights": None}, "scale_attn_weights must be true or false"),
    ("gpt2", {"activation_function": "mish"}, "activation_function must be one of"),
    ("gpt2", {"n_layer": 10**9}, "n_layer must be at most 65536"),
    ("gpt_neox", {"rope_theta": 1e4}, "rope_theta is called rotary_emb_base in this family"),
    ("gpt_neox", {"partial_rotary_factor": 1.0}, "partial_rotary_factor is called rotary_pct in this family"),
    ("gpt_neox", {"rotary_pct": 0.4}, "must give an even number of features"),
    ("gpt_neox", {"rotary_pct": 0.5, **rope("default", partial_rotary_factor=0.25)}, "must agree, but rotary_pct"),
    ("gpt_neox", {"rotary_pct": None}, "rotary_pct is null"),
    ("gpt_neox", {"num_key_value_heads": 2}, "num_key_value_heads is not known"),
    ("gpt_neox", {"head_dim": 16}, "head_dim must be hidden_size / num_attention_heads in this family"),
    (
        "glm4",
        {"rope_scaling": {"rope_type": "default"}, **rope("default", partial_rotary_factor=0.25)},
        "rope_scaling without a partial_rotary_factor gives 0.5",
    ),
    ("helium", {"head_dim": 16}, "head_dim must be hidden_size / num_attention_heads in this family"),
    ("llama", {"model_type": "apertus"}, r'not "apertus": its feed-forward has an activation with weights'),
    ("stablelm", {"qk_layernorm": 1}, "qk_layernorm must be true or false"),
    ("stablelm", {"head_dim": 16}, "head_dim must be hidden_size / num_attention_heads in this family"),
    ("exaone4", {"sliding_window": None}, "layer_types must name each layer where sliding_window is null"),
    ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern must be an integer"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 65536"),
    (
        "llama",
        {"model_type": "mixtral", "num_local_experts": 8},
        "Its num_local_experts shows that it is a mixture of experts",
    ),
    ("llama", {"model_type": "gemma3", "vision_config": {}, "text_config": {}}, "it is a multimodal model"),
    ("llama", {"num_experts": 8}, "num_experts is not known"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=lambda value: json.dumps(value)[:60])
@pytest.mark.usefixtures("shapes_unchecked")
def test_what_is_contradictory_or_not_served_is_refused_by_name(name, changes, message):
    with pytest.raises(CheckpointError, match=message) as refused:
        config_from_hugging_face(fields_of(name) | changes)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("wrong", ["5", [5], {"a": 5}, -1, 1e400, True])
@pytest.mark.parametrize("name", ["granite", "gemma2", "gemma3_text", "smollm3, windows", "phi3, longrope", "exaone4"])
@pytest.mark.usefixtures("shapes_unchecked")
def test_whatever_stands_in_the_place_of_a_number_is_understood_or_refused(name, wrong):
    fields = fields_of(name)
    for key in {*LAYOUTS[fields["model_type"]].keys, *fields} - {"model_type"}:
        try:
            config_from_hugging_face(fields | {key: wrong})
        except CheckpointError as refused:
            assert str(refused).startswith("config.json")  # noqa: PT017 (either is right)


ACCEPTED = [
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "an-owner/a-model--modeling_phi3.Phi3ForCausalLM"}}),
    ("phi3", {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "lm_head_bias": False, "full_attn_mod": 1}),
    ("gemma2", {"sliding_window_size": 50, "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"}),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),
    ("smollm3", {"max_window_layers": 28, "pretraining_tp": 2}),
    ("exaone4", {"layer_types": [SLIDING] * 3, "sliding_window_pattern": "LLLG"}),
    ("glm", {"eos_token_id": [151329, 151336, 151338]}),
    ("glm", {"eos_token_id": None}),
    ("phi3", {"eos_token_id": 32000}),
    ("seed_oss", {"residual_dropout": 0.1, "attention_dropout": 0.1, "rope_scaling": {"rope_type": "default"}}),
    ("gemma3_text", {"rope_local_base_freq": 5000.0, "rope_theta": 1e6, "rope_scaling": None}),
]


@pytest.mark.parametrize(("name", "changes"), ACCEPTED)
def test_what_published_files_say_beside_changes_nothing(name, changes):
    plain, fields = fields_of(name), fields_of(name) | changes
    if "layer_types" in changes:
        plain["layer_types"] = changes["layer_types"]
    assert config_from_hugging_face(fields)[0] == config_from_hugging_face(plain)[0]


# Whose layers are the block's, but for windows, and whose frequencies are the same at every length.
CLASSIC = (
    *("llama", "llama, linear", "llama, llama3", "llama, yarn", "llama, yarn, betas", "llama, yarn, attention_factor"),
    *("llama, yarn, mscale", "mistral", "ministral", "ministral, all windowed", "qwen2", "qwen2, window from layer 1"),
    *("qwen2, layer types", "qwen2, yarn", "qwen3", "qwen3, layer types", "phi3", "seed_oss, classic"),
    *("ernie4_5, no biases",),
)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_the_fast_path_of_decoding_does_not_serve_are_explained(name):
    config, _ = config_from_hugging_face(fields_of(name))
    if "longrope" not in name:  # which has a factor for each of its pairs
        config = dataclasses.replace(config, head_dim=32)  # of which the kernel has code
    made = TransformerLM(config)
    served = isinstance(made._decoder(), NativeDecoder)
    told = [one.why for one in explain(made, torch.tensor([[1, 2]])) if one.op == "decode_step"]
    if name in CLASSIC or native.unavailable_reason():
        assert served == (not native.unavailable_reason())
        assert told == []
    else:
        assert not served
        assert re.search(rf"\b{FAMILIES[name][0]}\b", NOT_SERVED["decode_step"])
        assert told == [NOT_SERVED["decode_step"]]


@pytest.mark.parametrize("hostile", [{"factor": 1e308}, {"beta_slow": 1e-310}, {"beta_fast": 1e308}])
def test_scalings_of_absurd_size_are_models_all_the_same(hostile):
    config, _ = config_from_hugging_face(fields_of("llama") | rope("yarn", **{"factor": 4.0, **hostile}))
    with torch.device("meta"):
        TransformerLM(config)


def test_gemma_3_in_its_older_words_is_gemma_3_in_the_new_ones():
    new = fields_of("gemma3_text")
    old = {key: value for key, value in new.items() if key != "rope_parameters"} | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert config_from_hugging_face(old)[0] == config_from_hugging_face(new)[0]
    theirs = [AutoConfig.for_model(**fields).rope_parameters for fields in (new, old)]
    assert theirs[0] == theirs[1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_the_same_name(name):
    x = torch.linspace(-4, 4, 401)
    torch.testing.assert_close(OURS[ACTIVATIONS[name]](x), ACT2FN[name](x), atol=1e-6, rtol=1e-5)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("model_type", [name for name in LAYOUTS if name != "prenorm"])
def test_absent_keys_mean_what_each_config_class_says(model_type):
    """Sizes that the class would have; everything else is absent here, and there."""
    sizes: dict[str, Any] = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 32, "head_dim": 4, "bos_token_id": None, "pad_token_id": None}
    if model_type in ("gpt2", "gpt_neox"):
        sizes = {**sizes, "hidden_size": 256, "head_dim": None}
    if model_type == "helium":
        sizes = {**sizes, "num_attention_heads": 20, "hidden_size": 80}
    sizes = in_own_words(model_type, {key: value for key, value in sizes.items() if value is not None or "_id" in key})
    if model_type == "stablelm":  # a quarter of a head is rotated, and head_dim is worked out
        sizes = {**sizes, "hidden_size": 256, "head_dim": 8}
    if model_type in ("gemma", "nemotron"):
        sizes["num_key_value_heads"] = 16
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes), attn_implementation="eager")
    config, _ = config_from_hugging_face({"model_type": model_type, **sizes})
    ours = TransformerLM(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    stored = theirs.state_dict()
    if config.tie_embeddings:
        stored.pop("lm_head.weight")
    ours.load_state_dict(
        weights_from_hugging_face(
            config,
            stored,
            None,
            LAYOUTS[model_type].namings[naming_among(LAYOUTS[model_type], stored, tied=config.tie_embeddings)],
        )
    )
    ids = torch.randint(61, (1, 200))
    with torch.no_grad():
        wanted, logits = theirs.eval()(ids, use_cache=False).logits, ours.eval()(ids)
    assert (logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()
