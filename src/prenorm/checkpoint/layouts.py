"""A model's config and weights in Hugging Face's layout, and a config back from it.

Read from the config classes of transformers 5.23 (models/{llama,mistral,qwen2,qwen3}/configuration_*.py).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig, check_model
from ..errors import CheckpointError, ConfigError
from ..validation import check_size
from .bookkeeping import HARMLESS_VALUES, NO_INFLUENCE
from .files import IN_THE_FILE, json_text
from .names import PACKED, SCALES, parameters_of
from .rope import as_float, foreign_in_rope_keys, half_split, rope_from_hugging_face, rope_to_hugging_face
from .windows import window_of_others, window_of_qwen

# The class that opens each model_type. "prenorm" is for what no family of theirs can say.
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "prenorm": "TransformerLM",
}

# The model_type of an EncoderDecoder's folder (encoder_decoder.py), which is no language model's.
ENCODER_DECODER = "prenorm_encoder_decoder"

# The longest context published is 10 million tokens; a rotary table for this many takes some 10 GB.
_LONGEST_CONTEXT = 2**24

# The sizes: their names in every family, and ours. Every file must have the first five.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_seq_len",
}

# Further fields of ours, and their keys in every family.
_NUMBERS = {
    "eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "prenorm_dropout",
    "window": "sliding_window",
}
# Sizes that may be null in other families, where they are worked out. These families' own classes refuse a null.
_NEVER_NULL = {
    "llama": (),
    "mistral": ("num_key_value_heads",),
    "qwen2": ("head_dim",),
    "qwen3": ("head_dim",),
    "prenorm": (),
}
# What a family has without saying so.
_FIXED = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}

# The keys that matter to the numbers. First those that every file must have, then those of every family, then each
# family's own, with what its config class assumes when the file is silent.
_REQUIRED = tuple(_SIZES)[:5]
_COMMON = {
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "prenorm_dropout": 0.0,
}
_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": None, "max_position_embeddings": 2048, "attention_bias": False, "eos_token_id": 2},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096, "eos_token_id": 2},
    "qwen2": _QWEN,
    "qwen3": {"head_dim": 128, "attention_bias": False, **_QWEN},
    "prenorm": {
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "qk_norm": False,
        "qkv_bias": False,
        "o_bias": False,
    },
}
# Read in one piece by `rope_from_hugging_face` and windows.py, and by whoever reads the file.
_READ_ELSEWHERE = {"model_type", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "prenorm_save_id"}


def config_to_hugging_face(
    config: ModelConfig, *, eos_token_ids: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The config.json of a model, in the first family that can say all of it, or as model_type "prenorm".

    An interleaved model is described as the half-split one that `weights_to_hugging_face` makes of it.
    """
    family = family_of(config)
    fields = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        **{key: getattr(config, field) for key, field in _SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": float(config.eps),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        **rope_to_hugging_face(config.rope_theta, config.rope_scaling),
        **_own_keys(family, config),
        # Written even when null: Llama's and Mistral's classes assume ids that this vocabulary may not have.
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": eos_to_hugging_face(eos_token_ids),
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),  # the same in the words of transformers 4
    }
    return fields | ({"prenorm_dropout": config.dropout} if config.dropout else {})


def family_of(config: ModelConfig) -> str:
    """The model_type that can say all of a config."""
    biases = (config.qkv_bias, config.o_bias)
    both_or_neither = config.qkv_bias == config.o_bias
    if config.qk_norm:
        return "qwen3" if both_or_neither else "prenorm"
    if biases == (True, False):
        return "qwen2"
    # Llama's config class refuses such sizes, even when head_dim is given.
    heads_divide_the_width = config.d_model % config.num_heads == 0
    if both_or_neither and config.window is None and heads_divide_the_width:
        return "llama"
    return "mistral" if biases == (False, False) else "prenorm"


def _own_keys(family: str, config: ModelConfig) -> dict[str, Any]:
    """What the config says in the keys that not every family has."""
    windowed = config.window is not None
    said = {
        "attention_bias": config.qkv_bias,
        "use_sliding_window": windowed,
        "sliding_window": config.window,
        "max_window_layers": 0 if windowed else config.num_layers,
        "layer_types": ["sliding_attention" if windowed else "full_attention"] * config.num_layers,
        "qk_norm": config.qk_norm,
        "qkv_bias": config.qkv_bias,
        "o_bias": config.o_bias,
    }
    own = {key: said[key] for key in _FAMILIES[family] if key in said}
    return own | ({"mlp_bias": False} if family == "llama" else {})


def eos_to_hugging_face(eos_token_ids: tuple[int, ...]) -> int | list[int] | None:
    """End-of-text ids as config.json spells them: nothing, a number, or a list."""
    return list(eos_token_ids) if len(eos_token_ids) > 1 else next(iter(eos_token_ids), None)


def weights_to_hugging_face(
    config: ModelConfig, tensors: Mapping[str, Tensor], kind: str | None = None
) -> dict[str, Tensor]:
    """A model's tensors under Hugging Face's names, in half-split order whatever order the model has."""
    ends = (".weight", ".bias", PACKED, SCALES)
    rotated = (*(f"{one}_proj{end}" for one in "qk" for end in ends), "q_norm.weight", "k_norm.weight")
    return {
        parameter.hugging_face: half_split(tensors[parameter.name], config.head_dim)
        if config.rope_interleaved and parameter.name.endswith(rotated)
        else tensors[parameter.name]
        for parameter in parameters_of(config, kind)
    }


def config_from_hugging_face(
    fields: Mapping[str, Any], *, source: str = "config.json"
) -> tuple[ModelConfig, tuple[int, ...]]:
    """The model that a config.json describes, and the ids that end a text.

    Keys that are absent mean what the family's own config class says. Raises CheckpointError, listing every key that
    is missing or not understood; `source` names the file in the message.
    """
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        hint = "; EncoderDecoder.from_pretrained opens this folder" if family == ENCODER_DECODER else ""
        raise CheckpointError(
            f"{source}: model_type must be one of {', '.join(_FAMILIES)}, not {json_text(family)}{hint}."
        )
    problems = [f"{key} is missing" for key in _REQUIRED if key not in fields]
    problems += [f"{key} is null" for key in (*_REQUIRED, *_NEVER_NULL[family]) if fields.get(key, 0) is None]
    if problems := [*problems, *_foreign_keys(family, fields)]:
        raise CheckpointError(
            f"{source} (model_type {family}) must be understood as a whole, but {'; '.join(problems)}. "
            "Nothing is ignored, because each of these may change what the model computes."
        )
    defaults = {**_COMMON, **_FAMILIES[family]}
    known = {**defaults, **fields}
    try:
        config = _read(family, known)
    except ConfigError as error:
        told = [
            f" {key} is absent, which means {json_text(default)}."
            for key, default in defaults.items()
            if key not in fields and default is not None and re.search(rf"\b{key}\b", str(error))
        ]
        raise CheckpointError(f"{source}: {error}{''.join(told)}") from error
    return config, eos_from_hugging_face(known["eos_token_id"], config.vocab_size, source=source)


def _foreign_keys(family: str, fields: Mapping[str, Any]) -> Iterator[str]:
    known = {*_REQUIRED, *_COMMON, *_FAMILIES[family], *_READ_ELSEWHERE, *NO_INFLUENCE}
    for key in sorted(fields.keys() - known):
        if key not in HARMLESS_VALUES:
            if fields[key] is not None:  # a null says nothing, whatever it might have been about
                yield f"{key} is not known"
        elif fields[key] not in HARMLESS_VALUES[key]:
            only = json_text(HARMLESS_VALUES[key][0])
            yield f"{key} must be {only} or absent, not {json_text(fields[key])}"
    yield from foreign_in_rope_keys(fields)


def _read(family: str, known: Mapping[str, Any]) -> ModelConfig:
    """The config that these fields describe; the family's defaults are among them. Raises ConfigError.

    Everything is checked under the file's own names first, so that a message names what the file contains.
    """
    check_size("num_hidden_layers", known["num_hidden_layers"], spelling=IN_THE_FILE)
    max_seq_len = known["max_position_embeddings"]
    check_size("max_position_embeddings", max_seq_len, spelling=IN_THE_FILE)
    if max_seq_len > _LONGEST_CONTEXT:
        raise ConfigError(f"max_position_embeddings must be at most {_LONGEST_CONTEXT}, not {max_seq_len}.")
    theta, scaling = rope_from_hugging_face(known, max_seq_len)
    biases = {"qkv_bias": "attention_bias", "o_bias": "attention_bias"} if "attention_bias" in _FAMILIES[family] else {}
    own = {name: name for name in ("qk_norm", "qkv_bias", "o_bias")} if family == "prenorm" else biases
    names = {**{field: key for key, field in _SIZES.items()}, **_NUMBERS, **own}
    fields = {
        **{field: known.get(key) for field, key in names.items()},
        "rope_theta": theta,
        "rope_scaling": scaling,
        "eps": as_float(known["rms_norm_eps"]),
        "dropout": 0.0 if known["prenorm_dropout"] is None else as_float(known["prenorm_dropout"]),
        "window": window_of_qwen(known) if family.startswith("qwen") else window_of_others(known),
        **_FIXED.get(family, {}),
    }
    spelling = IN_THE_FILE._replace(name=lambda field: names.get(field, field))
    check_model({**_DEFAULTS, **fields}, spelling)
    return ModelConfig(**fields)


def eos_from_hugging_face(
    value: Any, vocab_size: int, *, source: str = "config.json", key: str = "eos_token_id"
) -> tuple[int, ...]:
    """The ids that end a text, from the number, list or null of a key in config.json."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for id in ids:
        if type(id) is not int or not 0 <= id < vocab_size:
            raise CheckpointError(f"{source}: {key} must be ids from 0 to {vocab_size - 1}, not {json_text(id)}.")
    return tuple(ids)
