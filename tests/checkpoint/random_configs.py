"""A config.json of a small model, drawn at random: any key of its config class, at any value a person might give."""

import random
from typing import Any

from transformers import AutoConfig

from .families import FULL, SLIDING

ABSENT = object()
ACTIVATIONS = ["silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_python_tanh"]
ACTIVATIONS += ["quick_gelu", "relu", "relu2", "sigmoid", "tanh", "mish", "linear", "leaky_relu", "gelu_10", "relu6"]
OWN = {  # GPT-2's names
    **{"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    **{"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"},
}


def draw(model_type: str, chance: random.Random) -> dict[str, Any]:
    """The config.json of a small model: any key of the config class, at any value that a person might give."""
    heads, layers = chance.choice([1, 2, 3, 4, 4]), chance.choice([1, 2, 3, 4])
    head_dim = chance.choice([4, 6, 8, 8, 12, 16])
    sizes: dict[str, Any] = {
        "vocab_size": chance.choice([32, 61, 64]),
        "hidden_size": heads * chance.choice([head_dim, 8, 12]),
        "intermediate_size": chance.choice([20, 33, 40]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": chance.choice([n for n in (1, 2, 3, 4) if heads % n == 0]),
        "head_dim": head_dim,
        "max_position_embeddings": chance.choice([64, 128, 512]),
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    }
    defaults = AutoConfig.for_model(model_type).to_dict()
    names = {ours: OWN.get(ours, ours) if model_type == "gpt2" else ours for ours in sizes}
    fields = {"model_type": model_type, **{names[key]: value for key, value in sizes.items()}}
    for key in ("num_key_value_heads", "head_dim"):
        if key not in defaults or chance.random() < 0.1:
            fields.pop(key, None)
    for key, default in defaults.items():
        if key not in fields and chance.random() < 0.5:
            fields[key] = _value(key, default, layers, chance)
    fields |= {key: value for key, value in FURTHER.items() if key not in defaults and chance.random() < 0.01}
    if "rope_parameters" in defaults:
        fields.pop("rope_parameters", None)
        if chance.random() < 0.8:
            fields |= _rope(model_type, fields.get("head_dim") or sizes["hidden_size"] // heads, chance)
    return {key: value for key, value in fields.items() if value is not ABSENT}


# What a person may have put into a file of any family, because another family has it.
FURTHER = {
    **{"mlp_bias": True, "attention_bias": True, "head_dim": 8, "sliding_window": 20, "use_sliding_window": True},
    **{"layer_types": [FULL, SLIDING], "partial_rotary_factor": 0.5, "logits_scaling": 3.0, "clip_qkv": 0.1},
    **{"embedding_multiplier": 3.0, "final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0},
    **{"original_max_position_embeddings": 32, "rope_theta": 77.0, "logit_scale": 0.1, "tie_encoder_decoder": False},
    **{"qk_layernorm": True, "use_qk_norm": True, "rms_norm_eps": 0.5, "layer_norm_eps": 0.5, "is_causal": False},
}


AS_IT_IS = [
    *("id2label", "label2id", "architectures", "transformers_version", "_name_or_path", "dtype", "return_dict"),
    *("is_encoder_decoder", "add_cross_attention"),  # other kinds of model, which both refuse
]


def _value(key: str, default: Any, layers: int, chance: random.Random) -> Any:
    """A value of a key that is not a size."""
    if key in ("hidden_act", "hidden_activation", "activation_function", "summary_activation"):
        return chance.choice(ACTIVATIONS[:13] if chance.random() < 0.9 else ACTIVATIONS)
    if key == "layer_types":
        return chance.choice([ABSENT, [chance.choice([FULL, SLIDING]) for _ in range(layers)]])
    if key == "no_rope_layers":
        return chance.choice([ABSENT, None, [chance.choice([0, 1]) for _ in range(layers)]])
    if key in ("sliding_window", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"):
        return chance.choice([None, 1, 2, 3, 20, 50, 4096])
    if key == "no_rope_layer_interval":
        return chance.choice([1, 2, 3, 4])
    if key == "query_pre_attn_scalar":
        return chance.choice([1, 8, 16, 20, 256])
    if key == "original_max_position_embeddings":
        return chance.choice([32, 64, 512])
    if key in AS_IT_IS:
        return ABSENT
    if isinstance(default, bool) or key in ("use_bidirectional_attention", "reorder_and_upcast_attn"):
        return chance.choice([True, False])
    if key in ("clip_qkv", "final_logit_softcapping", "attn_logit_softcapping"):
        return chance.choice([None, 0.3, 2.0, 30.0])
    if key.endswith(("_eps", "_epsilon")):
        return chance.choice([1e-8, 1e-6, 1e-5, 1e-3, 0.1, 1.0])
    if isinstance(default, float) and key.endswith(("drop", "dropout")):
        return chance.choice([0.0, 0.1, 0.5])
    if isinstance(default, float):
        return chance.choice([0.11, 0.3, 1.0, 2.5, 12.0])
    if isinstance(default, int):
        if key.endswith("token_id"):
            return default
        return chance.choice([0, 1, 2, 3])
    return chance.choice([ABSENT, None])


def _rope(model_type: str, head_dim: int, chance: random.Random) -> dict[str, Any]:
    """Settings of rotary embedding, as transformers 5 writes them, or as 4 did."""
    if model_type == "gemma3_text" and chance.random() < 0.7:
        nested = {kind: _scaling(head_dim, 1.0, chance) for kind in (FULL, SLIDING)}
        return {"rope_parameters": {kind: scaling | _theta(chance) for kind, scaling in nested.items()}}
    defaults = (AutoConfig.for_model(model_type).to_dict()["rope_parameters"] or {}).get("partial_rotary_factor")
    shares = [share for share in (0.25, 0.5, 0.75, 1.0) if int(head_dim * share) % 2 == 0 and head_dim * share >= 2]
    share = chance.choice(shares or [1.0]) if defaults is not None else 1.0
    scaling, theta = _scaling(head_dim, share, chance), _theta(chance)
    of_share = {} if defaults is None else {"partial_rotary_factor": share}
    new = {"rope_parameters": {**scaling, **theta, **of_share}}
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    beside = {
        names.get(key, key) if model_type == "gpt_neox" else key: value for key, value in (theta | of_share).items()
    }
    if chance.random() < 0.3:
        scaling["type"] = scaling.pop("rope_type")
    old = {**beside, "rope_scaling": None if "default" in scaling.values() and chance.random() < 0.8 else scaling}
    return chance.choice([new, new, old, old, {**new, **beside}, {"rope_scaling": scaling}, {**old, **new}])


def _theta(chance: random.Random) -> dict[str, Any]:
    return chance.choice([{}, {"rope_theta": 10000}, {"rope_theta": 500.0}, {"rope_theta": 1e6}])


def _scaling(head_dim: int, share: float, chance: random.Random) -> dict[str, Any]:
    def some(**optional: Any) -> dict[str, Any]:
        return {key: value for key, value in optional.items() if chance.random() < 0.4}

    original = {"original_max_position_embeddings": chance.choice([16, 32, 64, 256])}
    factor = {"factor": chance.choice([1.0, 2, 2.5, 8.0])}
    kind = chance.choice(["default", "default", "linear", "dynamic", "yarn", "yarn", "llama3", "longrope"])
    pairs = int(head_dim * share) // 2
    scaling: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": factor,
        "dynamic": factor,
        "yarn": {
            **factor,
            **(original if chance.random() < 0.8 else {}),
            **some(attention_factor=chance.choice([0.5, 1.0, 1.7]), beta_fast=chance.choice([4, 16.0, 64])),
            **some(beta_slow=chance.choice([0.5, 1, 2]), truncate=chance.choice([True, False])),
            **some(mscale=chance.choice([0.5, 1.0, 0]), mscale_all_dim=chance.choice([0.4, 1, 0.0])),
        },
        "llama3": {**factor, **original, "low_freq_factor": chance.choice([1, 1.5]), "high_freq_factor": 4.0},
        "longrope": {
            **original,
            "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
            "long_factor": [2 + pair for pair in range(pairs)],
            **some(**factor, attention_factor=1.3),
        },
    }
    return {"rope_type": kind, **scaling[kind]}
