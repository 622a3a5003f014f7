"""Gemma, Gemma 2 and the text model of Gemma 3: norms of 1 + weight, GeGLU, scaled embeddings, soft caps."""

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import ConfigError
from ...validation import check_number, check_size
from ..files import IN_THE_FILE, json_text, name_text
from ..names import CLASSIC
from ..rope import DEFAULT_THETA, Dialect, as_float, foreign_in_rope_object, scaling_in
from ..windows import FULL, SLIDING, kinds_of_layers, windows_of
from .layout import (
    Known,
    Layout,
    activation_of,
    biases,
    check_causal,
    check_same_activation,
    number,
    number_or_none,
)


def _of_all(known: Known) -> dict[str, Any]:
    check_causal(known)
    # transformers rounds the root to the dtype of the weights; ours is the more exact.
    return {**biases(known), "one_plus_norms": True, "embedding_scale": known["hidden_size"] ** 0.5}


def _gemma(known: Known) -> dict[str, Any]:
    # The first releases say gelu and mean its tanh form, as the config class has it.
    act = "gelu_pytorch_tanh" if known["hidden_act"] == "gelu" else known["hidden_act"]
    activation = activation_of({"hidden_act": act})
    check_same_activation(known, "hidden_activation", activation)
    return {**_of_all(known), "activation": activation}


def _gemma2(known: Known) -> dict[str, Any]:
    kinds = kinds_of_layers(known)
    if kinds is None:
        kinds = [FULL if layer % 2 else SLIDING for layer in range(known["num_hidden_layers"])]
    activation = activation_of(known, "hidden_activation")
    check_same_activation(known, "hidden_act", activation)
    if known["sliding_window_size"] not in (None, known["sliding_window"]):
        raise ConfigError("sliding_window_size and sliding_window differ; keep sliding_window.")
    scalar = number(known, "query_pre_attn_scalar")
    return {
        **_of_all(known),
        "residual": "sandwich",
        "activation": activation,
        "attention_scale": None if scalar == known["head_dim"] else scalar**-0.5,
        "attention_softcap": number_or_none(known, "attn_logit_softcapping"),
        "logit_softcap": number_or_none(known, "final_logit_softcapping"),
        **windows_of(kinds, known["sliding_window"]),
    }


def _gemma3(known: Known) -> dict[str, Any]:
    patterns = [known[key] for key in ("sliding_window_pattern", "_sliding_window_pattern") if known[key] is not None]
    kinds = kinds_of_layers(known)
    if kinds is None:
        pattern = patterns[0] if patterns else 6
        check_size("sliding_window_pattern", pattern, spelling=IN_THE_FILE)
        if patterns[1:] not in ([], [pattern]):
            raise ConfigError("sliding_window_pattern and _sliding_window_pattern differ; keep one of them.")
        kinds = [SLIDING if (layer + 1) % pattern else FULL for layer in range(known["num_hidden_layers"])]
    if known["attn_logit_softcapping"] is not None:
        raise ConfigError("attn_logit_softcapping must be null or absent: transformers' class does not cap scores.")
    return {**_gemma2({**known, "layer_types": kinds}), "qk_norm": True}


def _rope(known: Known, max_seq_len: int) -> dict[str, Any]:
    """The bases and scalings of layers that see everything, and of those with a window."""
    nested, scaling = known.get("rope_parameters") or {}, known.get("rope_scaling") or {}
    full, local = (dict(nested.get(kind) or {}) for kind in (FULL, SLIDING))
    where = f"rope_parameters.{FULL}"
    both = ((where, full), ("rope_scaling", scaling))
    if full.keys() - {"rope_theta"} and scaling and len({scaling_in(*one, max_seq_len, _ROPE) for one in both}) > 1:
        raise ConfigError(f"rope_scaling and {where} contradict each other; keep one of them.")
    base = _base({where: full.get("rope_theta"), "rope_theta": known.get("rope_theta")}, _ROPE.theta)
    local_base = _base(
        {f"rope_parameters.{SLIDING}": local.get("rope_theta"), _LOCAL_BASE: known.get(_LOCAL_BASE)}, DEFAULT_THETA
    )
    return {
        "rope_theta": base,
        "rope_scaling": scaling_in(where, full | scaling, max_seq_len, _ROPE),
        "window_rope_theta": local_base,
        "window_rope_scaling": scaling_in(f"rope_parameters.{SLIDING}", local, max_seq_len, _ROPE),
    }


def _base(given: dict[str, Any], otherwise: float) -> float:
    said = {key: as_float(value) for key, value in given.items() if value is not None}
    for key, value in said.items():
        check_number(key, value, above=0.0, spelling=IN_THE_FILE)
    if len(set(said.values())) > 1:
        raise ConfigError(f"{' and '.join(said)} give different bases of rotary embedding; keep one of them.")
    return next(iter(said.values()), otherwise)


def _foreign_in_rope(fields: Mapping[str, Any]) -> Iterator[str]:
    nested, scaling = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    for key, value in (("rope_parameters", nested), ("rope_scaling", scaling)):
        if not isinstance(value, dict):
            yield f"{key} must be an object or null, not {json_text(value)}"
            return
    for kind in sorted(nested.keys() - {FULL, SLIDING}):
        yield f"rope_parameters.{name_text(kind)} is not known, where {FULL} and {SLIDING} are"
    objects = {f"rope_parameters.{kind}": nested.get(kind) or {} for kind in (FULL, SLIDING)}
    for key, value in {**objects, "rope_scaling": scaling}.items():
        if not isinstance(value, dict):
            yield f"{key} must be an object or null, not {json_text(value)}"
            continue
        yield from foreign_in_rope_object(key, value, _ROPE)
        if value.get("truncate") not in (None, True):  # transformers looks for it elsewhere
            yield f"{key}.truncate must be true or absent"


_LOCAL_BASE = "rope_local_base_freq"
_ROPE = Dialect(theta=1000000.0)

_KEYS = {
    "head_dim": 256,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": None,
    "hidden_act": None,
    "hidden_activation": None,
    "eos_token_id": 1,
}
_KEYS_2 = {
    **_KEYS,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_size": None,  # the older name
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_NEVER_NULL = ("num_key_value_heads", "head_dim")
_NAMING_2 = CLASSIC._replace(
    parts={
        **CLASSIC.parts,
        "post_norm1": "post_attention_layernorm",
        "norm2": "pre_feedforward_layernorm",
        "post_norm2": "post_feedforward_layernorm",
    }
)

LAYOUTS = {
    "gemma": Layout(
        architecture="GemmaForCausalLM",
        keys={
            **_KEYS,
            "num_key_value_heads": 16,
            "max_position_embeddings": 8192,
            "hidden_act": "gelu_pytorch_tanh",
        },
        read=_gemma,
        never_null=_NEVER_NULL,
    ),
    "gemma2": Layout(
        architecture="Gemma2ForCausalLM", keys=_KEYS_2, read=_gemma2, never_null=_NEVER_NULL, naming=_NAMING_2
    ),
    "gemma3_text": Layout(
        architecture="Gemma3ForCausalLM",
        keys={
            **_KEYS_2,
            "max_position_embeddings": 131072,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "sliding_window_pattern": None,
            "_sliding_window_pattern": None,
            _LOCAL_BASE: None,
        },
        read=_gemma3,
        rope=_ROPE,
        read_rope=_rope,
        foreign_in_rope=_foreign_in_rope,
        never_null=_NEVER_NULL,
        naming=_NAMING_2,
    ),
}
