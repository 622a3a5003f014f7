"""Granite: a Llama with multipliers. Source: transformers' models/granite."""

from typing import Any

from .layout import Known, Layout, activation_of, biases, flag, number


def _read(known: Known) -> dict[str, Any]:
    return {
        **biases(known),
        "activation": activation_of(known),
        "ffn_bias": flag(known, "mlp_bias"),
        "embedding_scale": number(known, "embedding_multiplier"),
        "residual_scale": number(known, "residual_multiplier"),
        "attention_scale": number(known, "attention_multiplier"),
        "logit_divisor": number(known, "logits_scaling"),
    }


LAYOUTS = {
    "granite": Layout(
        architecture="GraniteForCausalLM",
        keys={
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
            "eos_token_id": 2,
        },
        read=_read,
        never_null=("head_dim",),
    )
}
