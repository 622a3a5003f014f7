"""GLM and GLM 4: a part of each head rotated, in neighbouring pairs, and gate and up in one matrix."""

from typing import Any

from ...validation import check_flag
from ..files import IN_THE_FILE
from ..names import CLASSIC
from ..rope import Dialect
from .layout import Known, Layout, activation_of
from .llama import GATE_UP


def _glm(known: Known) -> dict[str, Any]:
    check_flag("attention_bias", known["attention_bias"], spelling=IN_THE_FILE)
    return {"activation": activation_of(known), "qkv_bias": known["attention_bias"]}


def _glm4(known: Known) -> dict[str, Any]:
    return {**_glm(known), "residual": "sandwich"}


_KEYS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "partial_rotary_factor": None,
    "hidden_act": "silu",
    "rms_norm_eps": 0.00000015625,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
}
_SAME: dict[str, Any] = {
    "keys": _KEYS,
    "never_null": ("num_key_value_heads", "head_dim", "partial_rotary_factor"),
    "null_is_default": ("eos_token_id",),
    "rope": Dialect(partial=0.5),
    "interleaved": True,
}

LAYOUTS = {
    "glm": Layout(architecture="GlmForCausalLM", read=_glm, naming=CLASSIC._replace(fused=GATE_UP), **_SAME),
    "glm4": Layout(
        architecture="Glm4ForCausalLM",
        read=_glm4,
        naming=CLASSIC._replace(
            fused=GATE_UP,
            parts={**CLASSIC.parts, "post_norm1": "post_self_attn_layernorm", "post_norm2": "post_mlp_layernorm"},
        ),
        **_SAME,
    ),
}
