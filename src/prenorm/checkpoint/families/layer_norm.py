"""Families with LayerNorm: OLMo, StarCoder 2, Nemotron, Command R (cohere) and StableLM."""

from typing import Any

from ...errors import ConfigError
from ..names import CLASSIC
from ..rope import Dialect
from .layout import Known, Layout, activation_of, biases, check_head_dim, flag, number, number_or_none


def _olmo(known: Known) -> dict[str, Any]:
    return {
        **biases(known),
        "eps": 1e-5,
        "norm": "layer_bare",
        "activation": activation_of(known),
        "clip_qkv": number_or_none(known, "clip_qkv"),
    }


def _starcoder2(known: Known) -> dict[str, Any]:
    return {
        **biases(known, "use_bias"),
        "norm": "layer",
        "activation": activation_of(known),
        "gated": False,
        "ffn_bias": known["use_bias"],
    }


def _nemotron(known: Known) -> dict[str, Any]:
    if known["num_key_value_heads"] is None:
        raise ConfigError("num_key_value_heads must be given in this family, whose own class does not work it out.")
    return {
        **biases(known),
        "norm": "layer",
        "one_plus_norms": True,
        "activation": activation_of(known),
        "gated": False,
        "ffn_bias": flag(known, "mlp_bias"),
    }


def _cohere(known: Known) -> dict[str, Any]:
    normed = flag(known, "use_qk_norm")
    return {
        **biases(known),
        "qk_norm": normed,
        "per_head_qk_norm": normed,
        "norm": "layer_scale",
        "residual": "parallel",
        "activation": activation_of(known),
        "logit_divisor": 1 / number(known, "logit_scale"),
    }


def _stablelm(known: Known) -> dict[str, Any]:
    check_head_dim(known)
    normed = flag(known, "qk_layernorm")
    return {
        "qkv_bias": flag(known, "use_qkv_bias"),
        "qk_norm": normed,
        "per_head_qk_norm": normed,
        "norm": "layer",
        "residual": "parallel" if flag(known, "use_parallel_residual") else "pre",
        "activation": activation_of(known),
    }


LAYOUTS = {
    "olmo": Layout(
        architecture="OlmoForCausalLM",
        keys={
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "attention_bias": False,
            "clip_qkv": None,
            "eos_token_id": 50279,
        },
        read=_olmo,
        never_null=("head_dim",),
        eps_key=None,
    ),
    "starcoder2": Layout(
        architecture="Starcoder2ForCausalLM",
        keys={
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "sliding_window": None,
            "use_bias": True,
            "tie_word_embeddings": True,
            "eos_token_id": 50256,
        },
        read=_starcoder2,
        never_null=("num_key_value_heads",),
        eps_key="norm_epsilon",
        naming=CLASSIC._replace(
            parts={**CLASSIC.parts, "ffn.up_proj": "mlp.c_fc", "ffn.down_proj": "mlp.c_proj"},
        ),
    ),
    "nemotron": Layout(
        architecture="NemotronForCausalLM",
        keys={
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": None,
            "hidden_act": "relu2",
            "norm_eps": 1e-5,
            "attention_bias": False,
            "mlp_bias": False,
            "eos_token_id": 3,
        },
        read=_nemotron,
        never_null=("num_key_value_heads", "partial_rotary_factor"),
        eps_key="norm_eps",
        rope=Dialect(partial=0.5),
    ),
    "cohere": Layout(
        architecture="CohereForCausalLM",
        keys={
            "num_key_value_heads": None,
            "max_position_embeddings": 8192,
            "hidden_act": "silu",
            "layer_norm_eps": 1e-5,
            "logit_scale": 0.0625,
            "attention_bias": False,
            "use_qk_norm": False,
            "tie_word_embeddings": True,
            "eos_token_id": 255001,
        },
        read=_cohere,
        never_null=("head_dim",),
        eps_key="layer_norm_eps",
        rope=Dialect(theta=500000.0),
        interleaved=True,
        naming=CLASSIC._replace(
            head_norms={"attn.q_norm": "self_attn.q_norm.weight", "attn.k_norm": "self_attn.k_norm.weight"}
        ),
    ),
    "stablelm": Layout(
        architecture="StableLmForCausalLM",
        keys={
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": None,
            "hidden_act": "silu",
            "layer_norm_eps": 1e-5,
            "use_qkv_bias": False,
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "eos_token_id": 0,
        },
        read=_stablelm,
        never_null=("num_key_value_heads", "partial_rotary_factor"),
        eps_key="layer_norm_eps",
        rope=Dialect(partial=0.25),
        naming=CLASSIC._replace(
            head_norms={f"attn.{one}_norm": f"self_attn.{one}_layernorm.norms.{{}}.weight" for one in "qk"}
        ),
    ),
}
