"""OLMo 2 and EXAONE 4: norms after a sublayer, on queries and keys too."""

from typing import Any

from ...errors import ConfigError
from ...validation import check_size
from ..files import IN_THE_FILE
from ..names import CLASSIC
from ..windows import FULL, SLIDING, kinds_of_layers, windows_of
from .layout import Known, Layout, activation_of, biases


def _olmo2(known: Known) -> dict[str, Any]:
    return {
        **biases(known),
        "residual": "post",
        "qk_norm": True,
        "wide_qk_norm": True,
        "activation": activation_of(known),
    }


def _exaone4(known: Known) -> dict[str, Any]:
    window, pattern, num_layers = (
        known[key] for key in ("sliding_window", "sliding_window_pattern", "num_hidden_layers")
    )
    kinds = kinds_of_layers(known)
    if kinds is None:
        if window is None:
            raise ConfigError("layer_types must name each layer where sliding_window is null.")
        check_size("sliding_window_pattern", pattern, spelling=IN_THE_FILE)
        kinds = [SLIDING if (layer + 1) % pattern else FULL for layer in range(num_layers)]
    # Layers that see everything are not rotated, unless no layer has a window.
    rotated = tuple(window is None or kind == SLIDING for kind in kinds)
    return {
        "residual": "post",
        "qk_norm": True,
        "activation": activation_of(known),
        "rotated": () if all(rotated) else rotated,
        **windows_of(kinds, window),
    }


NAMING = CLASSIC._replace(
    parts={
        **CLASSIC.parts,
        "post_norm1": "post_attention_layernorm",
        "post_norm2": "post_feedforward_layernorm",
    }
)

LAYOUTS = {
    "olmo2": Layout(
        architecture="Olmo2ForCausalLM",
        keys={
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "eos_token_id": 50279,
        },
        read=_olmo2,
        never_null=("head_dim",),
        naming=NAMING,
    ),
    "exaone4": Layout(
        architecture="Exaone4ForCausalLM",
        keys={
            "num_key_value_heads": 32,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "layer_types": None,
            "eos_token_id": 2,
        },
        read=_exaone4,
        never_null=("head_dim", "num_key_value_heads"),
        naming=NAMING,
    ),
}
