"""Families of the blessed block, some with biases, other activations or layers of two kinds: Llama and its kin."""

from typing import Any

from ...errors import ConfigError
from ...validation import check_size
from ..files import IN_THE_FILE, json_text
from ..names import CLASSIC
from ..rope import Dialect
from ..windows import FULL, SLIDING, kinds_of_layers, windows_of, windows_of_qwen
from .layout import Known, Layout, activation_of, biases, flag


def _llama(known: Known) -> dict[str, Any]:
    return {
        **biases(known),
        "activation": activation_of(known),
        "ffn_bias": flag(known, "mlp_bias"),
    }


def _mistral(known: Known) -> dict[str, Any]:
    return {"activation": activation_of(known)}


def _ministral(known: Known) -> dict[str, Any]:
    if known["head_dim"] is None:
        raise ConfigError("head_dim must be given in this family, whose own class does not work it out.")
    window = known["sliding_window"]
    kinds = kinds_of_layers(known) or [FULL if window is None else SLIDING] * known["num_hidden_layers"]
    return {"activation": activation_of(known), **windows_of(kinds, window)}


def _qwen2(known: Known) -> dict[str, Any]:
    return {"activation": activation_of(known), "qkv_bias": True, **windows_of_qwen(known)}


def _qwen3(known: Known) -> dict[str, Any]:
    return {"activation": activation_of(known), "qk_norm": True, **biases(known), **windows_of_qwen(known)}


def _smollm3(known: Known) -> dict[str, Any]:
    num_layers, interval, rotated = (
        known[key] for key in ("num_hidden_layers", "no_rope_layer_interval", "no_rope_layers")
    )
    if rotated is None:
        check_size("no_rope_layer_interval", interval, spelling=IN_THE_FILE)
        rotated = [int((layer + 1) % interval != 0) for layer in range(num_layers)]
    if not isinstance(rotated, list) or len(rotated) != num_layers or any(one not in (0, 1) for one in rotated):
        raise ConfigError(
            f"no_rope_layers must say 0 or 1 of each of the {num_layers} layers, but it is {json_text(rotated)}."
        )
    windowed = flag(known, "use_sliding_window") and known["sliding_window"] is not None
    kinds = kinds_of_layers(known)
    if kinds is None:
        kinds = [SLIDING if windowed and not one else FULL for one in rotated]
    if SLIDING in kinds and not windowed:
        raise ConfigError(
            "layer_types has sliding_attention, but use_sliding_window and sliding_window set no window; set both, or "
            "use full_attention."
        )
    return {
        "activation": activation_of(known),
        **biases(known),
        "ffn_bias": flag(known, "mlp_bias"),
        "rotated": () if all(rotated) else tuple(map(bool, rotated)),
        **windows_of(kinds, known["sliding_window"]),
    }


def _seed_oss(known: Known) -> dict[str, Any]:
    return {
        "activation": activation_of(known),
        "qkv_bias": biases(known)["qkv_bias"],
        "o_bias": biases(known, "attention_out_bias")["o_bias"],
        "ffn_bias": flag(known, "mlp_bias"),
    }


def _ernie4_5(known: Known) -> dict[str, Any]:
    biased = flag(known, "use_bias")
    return {"activation": activation_of(known), "qkv_bias": biased, "o_bias": biased, "ffn_bias": biased}


def _arcee(known: Known) -> dict[str, Any]:
    return {**_llama(known), "gated": False}


def _helium(known: Known) -> dict[str, Any]:
    if known["head_dim"] * known["num_attention_heads"] != known["hidden_size"]:
        raise ConfigError("head_dim must be hidden_size / num_attention_heads in this family, whose o_proj is square.")
    return {**_llama(known), "o_bias": False}


_QKV = {"self_attn.qkv_proj": ("attn.q_proj", "attn.k_proj", "attn.v_proj")}
GATE_UP = {"mlp.gate_up_proj": ("ffn.gate_proj", "ffn.up_proj")}

_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_MISTRAL = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "sliding_window": 4096,
    "eos_token_id": 2,
}

_LLAMA = {
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": 2,
}

LAYOUTS: dict[str, Layout] = {
    "llama": Layout(
        architecture="LlamaForCausalLM",
        keys=_LLAMA,
        read=_llama,
    ),
    "mistral": Layout(
        architecture="MistralForCausalLM", keys=_MISTRAL, read=_mistral, never_null=("num_key_value_heads",)
    ),
    "ministral": Layout(
        architecture="MinistralForCausalLM",
        keys={**_MISTRAL, "layer_types": None},
        read=_ministral,
        never_null=("num_key_value_heads",),
    ),
    "qwen2": Layout(architecture="Qwen2ForCausalLM", keys=_QWEN, read=_qwen2, never_null=("head_dim",)),
    "qwen3": Layout(
        architecture="Qwen3ForCausalLM",
        keys={"head_dim": 128, "attention_bias": False, **_QWEN},
        read=_qwen3,
        never_null=("head_dim",),
    ),
    "smollm3": Layout(
        architecture="SmolLM3ForCausalLM",
        keys={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "hidden_act": "silu",
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "max_window_layers": None,  # published beside layer_types; the class does not read it
            "layer_types": None,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "eos_token_id": 128001,
        },
        read=_smollm3,
        never_null=("head_dim",),
        rope=Dialect(theta=2000000.0),
    ),
    "phi3": Layout(
        architecture="Phi3ForCausalLM",
        keys={
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": None,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "eos_token_id": 32000,
        },
        read=_mistral,
        never_null=("head_dim", "partial_rotary_factor"),
        harmless={"interpolate_factor": (1,), "lm_head_bias": (False,), "full_attn_mod": (1,)},  # of Phi-4-mini
        rope=Dialect(
            types=("default", "longrope"), aliases={"su": "longrope", "yarn": "longrope"}, partial=1.0, original=4096
        ),
        naming=CLASSIC._replace(fused={**_QKV, **GATE_UP}),
    ),
    "seed_oss": Layout(
        architecture="SeedOssForCausalLM",
        keys={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 524288,
            "hidden_act": "silu",
            "attention_bias": True,
            "attention_out_bias": False,
            "mlp_bias": False,
            "eos_token_id": 2,
        },
        read=_seed_oss,
    ),
    "ernie4_5": Layout(
        architecture="Ernie4_5ForCausalLM",
        keys={
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "use_bias": False,
            "tie_word_embeddings": True,
            "eos_token_id": 2,
        },
        read=_ernie4_5,
        rope=Dialect(theta=500000.0),
        interleaved=True,
    ),
    "arcee": Layout(
        architecture="ArceeForCausalLM",
        keys={
            **_LLAMA,
            "max_position_embeddings": 4096,
            "hidden_act": "relu2",
            "rms_norm_eps": 1e-5,
            "eos_token_id": 128001,
        },
        read=_arcee,
    ),
    "helium": Layout(
        architecture="HeliumForCausalLM",
        keys={
            **_LLAMA,
            "num_key_value_heads": 20,
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-8,
        },
        read=_helium,
        never_null=("num_key_value_heads", "head_dim"),
        rope=Dialect(theta=100000.0),
        interleaved=True,
    ),
}
