"""Tiny models of transformers, family by family, with every switch away from its default, as folders."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [SLIDING, FULL, SLIDING]


def rope(kind: str, theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = rope("yarn", factor=8.0, original_max_position_embeddings=64)
LONGROPE = {
    "short_factor": [1.0, 1.1, 1.25, 1.5],
    "long_factor": [1.0, 2.0, 3.5, 6.0],
    "original_max_position_embeddings": 64,
}
GEMMA3_ROPE = {
    "rope_parameters": {
        FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
    }
}

# Name: the model_type and its switches. Sequences are 300 tokens long, beyond all windows and original contexts.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"mlp_bias": True, "attention_bias": True, "head_dim": 16, "rms_norm_eps": 1e-3}),
    **{
        f"llama, {act}": ("llama", {"hidden_act": act, "tie_word_embeddings": act == "relu"})
        for act in ("gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "quick_gelu", "relu", "relu2", "sigmoid")
    },
    "llama, linear": ("llama", rope("linear", factor=4.0)),
    "llama, dynamic": ("llama", {**rope("dynamic", factor=2.0), "max_position_embeddings": 128}),
    "llama, llama3": ("llama", rope("llama3", 5e5, **LLAMA3)),
    "llama, yarn": ("llama", YARN),
    "llama, yarn, betas": (
        "llama",
        rope("yarn", 500.0, factor=4.0, original_max_position_embeddings=64, beta_fast=12, beta_slow=2, truncate=False),
    ),
    "llama, yarn, attention_factor": (
        "llama",
        rope("yarn", factor=8.0, original_max_position_embeddings=64, attention_factor=1.7),
    ),
    "llama, yarn, mscale": (
        "llama",
        rope("yarn", factor=8.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=0.4),
    ),
    "llama, longrope": ("llama", rope("longrope", factor=8.0, **LONGROPE)),
    "mistral": ("mistral", {"sliding_window": 50, "head_dim": 12}),
    "mistral, no window": ("mistral", {"sliding_window": None, "hidden_act": "gelu"}),
    "ministral": ("ministral", {"sliding_window": 50, "head_dim": 8, "layer_types": MIXED}),
    "ministral, all windowed": ("ministral", {"sliding_window": 50, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False}),
    "qwen2, window from layer 1": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1, "head_dim": 16},
    ),
    "qwen2, layer types": ("qwen2", {"use_sliding_window": True, "sliding_window": 50, "layer_types": MIXED}),
    "qwen2, yarn": ("qwen2", rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64)),
    "qwen3": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3, layer types": (
        "qwen3",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 50, "layer_types": MIXED},
    ),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3, windows": (
        "smollm3",
        {
            "no_rope_layers": [0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 50,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "phi3": ("phi3", {"rms_norm_eps": 1e-3, "resid_pdrop": 0.1}),
    "phi3, window, partial": (
        "phi3",
        {"sliding_window": 50, "hidden_act": "gelu", "head_dim": 16, "partial_rotary_factor": 0.5},
    ),
    "phi3, longrope": (
        "phi3",
        {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 64, "tie_word_embeddings": True},
    ),
    "olmo2": (
        "olmo2",
        {"attention_bias": True, "rms_norm_eps": 1e-3, **rope("yarn", factor=8.0, original_max_position_embeddings=64)},
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.11,
            "logits_scaling": 5.0,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "gemma": ("gemma", {"head_dim": 16, "attention_bias": True}),
    "gemma, gelu": ("gemma", {"head_dim": 8, "hidden_act": "gelu", "tie_word_embeddings": False}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 20,
            "sliding_window": 50,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma2, no caps": (
        "gemma2",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 50,
            "layer_types": [FULL, SLIDING, FULL],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "hidden_activation": "gelu",
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 20,
            "sliding_window": 50,
            "sliding_window_pattern": 2,
            "final_logit_softcapping": 1.5,
            **GEMMA3_ROPE,
        },
    ),
    "glm": ("glm", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "glm, no biases": ("glm", {"head_dim": 16, "attention_bias": False, "partial_rotary_factor": 0.25}),
    "glm4": ("glm4", {"head_dim": 16, "rms_norm_eps": 1e-3}),
    "seed_oss": ("seed_oss", {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True}),
    "seed_oss, classic": ("seed_oss", {"head_dim": 16}),
    "ernie4_5": ("ernie4_5", {"head_dim": 16, "use_bias": True}),
    "ernie4_5, no biases": ("ernie4_5", {"head_dim": 8, "tie_word_embeddings": False}),
    "exaone4": ("exaone4", {"sliding_window": 50, "sliding_window_pattern": 3}),
    "olmo": ("olmo", {"clip_qkv": 0.4, "attention_bias": True, **rope("linear", factor=4.0)}),
    "olmo, no clip": ("olmo", {"tie_word_embeddings": True}),
    "starcoder2": ("starcoder2", {"sliding_window": 50, "norm_epsilon": 1e-3}),
    "starcoder2, no biases": ("starcoder2", {"use_bias": False, "hidden_act": "gelu", "tie_word_embeddings": False}),
    "nemotron": ("nemotron", {"head_dim": 16, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-3}),
    "nemotron, no biases": ("nemotron", {"partial_rotary_factor": 1.0, "tie_word_embeddings": True}),
    "cohere": ("cohere", {"logit_scale": 0.3, "attention_bias": True, "layer_norm_eps": 1e-3}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-3}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "tie_word_embeddings": True}),
    "stablelm, qk norm": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True, "layer_norm_eps": 1e-3}),
    "stablelm, parallel, qk norm": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "cohere, qk norm": ("cohere", {"use_qk_norm": True, "attention_bias": True, "head_dim": 16, "logit_scale": 0.3}),
    "arcee": ("arcee", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "arcee, yarn": ("arcee", {"head_dim": 16, "hidden_act": "gelu", "tie_word_embeddings": True, **YARN}),
    "helium": ("helium", {"head_dim": 8, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "gpt2": ("gpt2", {"n_inner": 40, "layer_norm_epsilon": 1e-3}),
    "gpt2, 4 n_embd": ("gpt2", {"activation_function": "gelu", "tie_word_embeddings": False}),
    "gpt2, scales": ("gpt2", {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2, scale by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    ),
    "gpt_neox": ("gpt_neox", {"layer_norm_eps": 1e-3}),
    "gpt_neox, sequential": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "tie_word_embeddings": True,
            "rotary_pct": 0.5,
            "rotary_emb_base": 500.0,
        },
    ),
    "gpt_neox, linear": (
        "gpt_neox",
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rotary_pct": 1.0, "hidden_act": "relu"},
    ),
    "exaone4, no window": ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 3}),
}


# Its names of the sizes, where they are others; None for those that its class does not have.
OWN: dict[str, dict[str, str | None]] = {
    "gpt2": {
        **{"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
        **{"max_position_embeddings": "n_positions", "intermediate_size": None, "num_key_value_heads": None},
    },
    "gpt_neox": {"num_key_value_heads": None},
}


def in_own_words(model_type: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """These sizes as a config.json of that family has them."""
    own = OWN.get(model_type, {})
    return {name: value for key, value in sizes.items() if (name := own.get(key, key)) is not None}


def fields_of(name: str) -> dict[str, Any]:
    """The config.json of a family."""
    model_type, switches = FAMILIES[name]
    return {"model_type": model_type, **in_own_words(model_type, SIZES), **switches}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of transformers with random weights, none of them special."""
    fields = fields_of(name)
    model_type = fields["model_type"]
    config = AutoConfig.for_model(**copy.deepcopy(fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            one_plus = "gemma" in model_type or model_type == "nemotron"  # whose norms multiply by 1 + weight
            scales = re.search(r"(norm|norms\.\d+|ln_\w)\.weight$", part) is not None and not one_plus
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + scales)
    return model.to(dtype).eval()


@functools.cache
def folder_of(name: str, root: Path, **options: Any) -> Path:
    """Its folder, as save_pretrained writes it."""
    folder = root / name.replace(" ", "-").replace(",", "")
    build(name).save_pretrained(folder, **options)
    return folder
