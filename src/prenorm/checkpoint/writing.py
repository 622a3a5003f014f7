"""Converting a model's config and weights to Hugging Face's layout, and its weights back."""

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from ..family import Family
from .families.layout import Layout, name_of_activation
from .layouts import LAYOUTS, LONGEST_CONTEXT, OURS, SIZES, config_from_hugging_face, eos_to_hugging_face
from .names import PACKED, SCALES, Naming, parameters_of
from .rope import half_split, rope_to_hugging_face
from .stored import join, parts_of_stored, split

_DTYPE_KEYS = ("dtype", "torch_dtype")  # of transformers 5 and 4


def config_as_it_came(
    source: Mapping[str, Any], config: ModelConfig, eos_token_ids: tuple[int, ...] | None, dtype: torch.dtype
) -> dict[str, Any] | None:
    """The config.json that a model was loaded from, if it still describes the model; otherwise None.

    eos_token_ids: None if it already has those of the model.
    """
    fields = dict(source)
    try:
        read, _ = config_from_hugging_face(fields)
        if read.tie_embeddings != config.tie_embeddings:
            fields["tie_word_embeddings"] = config.tie_embeddings
        if read.dropout != config.dropout:
            fields["prenorm_dropout"] = config.dropout
        if config_from_hugging_face(fields)[0] != config:
            return None
    except CheckpointError:
        return None
    if eos_token_ids is not None:
        fields["eos_token_id"] = eos_to_hugging_face(eos_token_ids)
    return {**fields, **dict.fromkeys(_DTYPE_KEYS & fields.keys(), _name_of(dtype))}


def config_to_hugging_face(
    config: ModelConfig,
    *,
    eos_token_ids: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    kind: str | None = None,
) -> dict[str, Any]:
    """The config.json of a model, in the first family that can express all of it, or as model_type "prenorm".

    An interleaved model is described as the half-split one that `weights_to_hugging_face` makes of it.
    kind: "int8" or "int4" for quantised matrices, which not every family can store.
    """
    # Written even when null: several classes assume ids that this vocabulary may not have.
    further = {
        **{"bos_token_id": None, "pad_token_id": None, "eos_token_id": eos_to_hugging_face(eos_token_ids)},
        **dict.fromkeys(_DTYPE_KEYS, _name_of(dtype)),
        **({"prenorm_dropout": config.dropout} if config.dropout else {}),
    }
    model_type = family_of(config)
    if model_type == OURS and (written := _written(config, kind)):
        return written | further
    fields = {
        "architectures": [LAYOUTS[model_type].architecture],
        "model_type": model_type,
        **{key: getattr(config, field) for key, field in SIZES.items()},
        "hidden_act": _activation(config),
        "rms_norm_eps": float(config.eps),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        **rope_to_hugging_face(config.rope_theta, config.rope_scaling),
        **_own_keys(model_type, config),
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        if model_type == OURS:
            for key in ("rope_scaling", "rope_parameters"):
                fields[key]["original_max_position_embeddings"] = scaling.original_max_seq_len
        else:  # theirs takes the one for the other
            fields["max_position_embeddings"] = scaling.original_max_seq_len
    return fields | further


def _written(config: ModelConfig, kind: str | None) -> dict[str, Any] | None:
    """What the first family writes of a config that it reads back as the same."""
    if config.family is not None and config.family.rotary_dim == config.head_dim:  # which is to say all of it
        config = dataclasses.replace(config, family=dataclasses.replace(config.family, rotary_dim=None))
    for model_type, layout in LAYOUTS.items():
        if layout.write is None or (kind is not None and not layout.naming.keeps_matrices):
            continue
        fields = {"architectures": [layout.architecture], "model_type": model_type, **layout.write(config)}
        with suppress(CheckpointError):
            if config_from_hugging_face({**fields, "prenorm_dropout": config.dropout})[0] == config:
                return fields
    return None


def family_of(config: ModelConfig) -> str:
    """The model_type that can express all of a config."""
    if not _says_context(config) or not _says_family(config):
        return OURS
    biases = (config.qkv_bias, config.o_bias)
    both_or_neither = config.qkv_bias == config.o_bias
    if config.qk_norm:
        return "qwen3" if both_or_neither and not _has_ffn_bias(config) else OURS
    if biases == (True, False):
        return OURS if _has_ffn_bias(config) else "qwen2"
    # Llama's config class refuses such sizes, even when head_dim is given.
    heads_divide_the_width = config.d_model % config.num_heads == 0
    if both_or_neither and config.window is None and heads_divide_the_width:
        return "llama"
    return "mistral" if biases == (False, False) and not _has_ffn_bias(config) else OURS


def _says_context(config: ModelConfig) -> bool:
    """Whether reading the scaling back would give this max_seq_len."""
    scaling, max_seq_len = config.rope_scaling, config.max_seq_len
    if scaling is None or scaling.kind not in ("dynamic", "yarn"):
        return True
    if scaling.kind == "dynamic":
        return max_seq_len == LONGEST_CONTEXT
    return max_seq_len >= int(min(LONGEST_CONTEXT, scaling.factor * scaling.original_max_seq_len))


def _says_family(config: ModelConfig) -> bool:
    """Whether the family's record adds only an activation and feed-forward biases, which several families have."""
    family = config.family
    return family is None or dataclasses.replace(family, activation="silu", ffn_bias=False) == Family()


def _has_ffn_bias(config: ModelConfig) -> bool:
    return config.family is not None and config.family.ffn_bias


def _activation(config: ModelConfig) -> str:
    return name_of_activation("silu" if config.family is None or not _says_family(config) else config.family.activation)


def _own_keys(model_type: str, config: ModelConfig) -> dict[str, Any]:
    """The values of keys that not every family has."""
    windowed = config.window is not None
    said: dict[str, Any] = {
        "attention_bias": config.qkv_bias,
        "mlp_bias": _has_ffn_bias(config),
        "use_sliding_window": windowed,
        "sliding_window": config.window,
        "max_window_layers": 0 if windowed else config.num_layers,
        "layer_types": ["sliding_attention" if windowed else "full_attention"] * config.num_layers,
        "qk_norm": config.qk_norm,
        "qkv_bias": config.qkv_bias,
        "o_bias": config.o_bias,
    }
    own = {key: said[key] for key in LAYOUTS[model_type].keys if key in said}
    if model_type == OURS and config.family is not None:
        # Not reordered, because half-split order is only defined for fully rotated heads.
        own |= {"rope_interleaved": config.rope_interleaved, "prenorm_family": config.family.to_dict()}
    return own


def weights_to_hugging_face(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    kind: str | None = None,
    number: int = 0,
) -> dict[str, Tensor]:
    """A model's tensors under the names of the family in `fields`, its config.json, and in that family's order.

    number: of the names that a model came with, where the family has several.
    """
    layout = LAYOUTS[fields["model_type"]]
    if not config.tie_embeddings:  # any more: the head and the embedding need a name each
        number %= len(layout.namings) // 2
    naming = naming_of(layout, kind, number)
    reordered = config.rope_interleaved and not layout.interleaved and not fields.get("rope_interleaved")
    ends = (".weight", ".bias", PACKED, SCALES)
    rotated = (*(f"{one}_proj{end}" for one in "qk" for end in ends), "q_norm.weight", "k_norm.weight")

    def given(name: str) -> Tensor:
        turned = reordered and name.endswith(rotated)
        return half_split(tensors[name], config.head_dim) if turned else tensors[name]

    parts = parts_of_stored(parameters_of(config, kind, naming))
    return {stored: join(each, [given(one.name) for one in each], config.head_dim) for stored, each in parts.items()}


def weights_from_hugging_face(
    config: ModelConfig, stored: dict[str, Tensor], kind: str | None, naming: Naming
) -> dict[str, Tensor]:
    """Tensors under prenorm's names; fused matrices are split into their parts. Empties `stored`."""
    tensors: dict[str, Tensor] = {}
    for hugging_face, parts in parts_of_stored(parameters_of(config, kind, naming)).items():
        each = split(parts, stored.pop(hugging_face), config.head_dim)
        tensors |= {part.name: tensor for part, tensor in zip(parts, each, strict=True)}
    return tensors


def naming_among(layout: Layout, found: Collection[str], *, tied: bool) -> int:
    """The number of the names that most of the tensors around the layers have, of those that were found in a folder."""
    half = len(layout.namings) // 2
    known = [sum(f"{name}.weight" in found for name in naming.outside.values()) for naming in layout.namings[:half]]
    number = known.index(max(known))
    outside = layout.namings[number].outside
    as_head = f"{outside['embedding']}.weight" not in found and f"{outside['lm_head']}.weight" in found
    return number + half if tied and as_head else number


def naming_of(layout: Layout, kind: str | None, number: int = 0) -> Naming:
    """The names of a layout, by their number.

    Raises CheckpointError for quantised matrices in a layout that fuses or transposes them.
    """
    naming = layout.namings[number]
    if kind is not None and not naming.keeps_matrices:
        raise CheckpointError(
            f"{kind} matrices are not stored in one tensor, as {', '.join(naming.fused)} would be; "
            "open the folder that this one was made of, and quantize() that."
        )
    return naming


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
