"""The supported families by model_type, and the model that a config.json of theirs describes.

Derived from the config and model classes of transformers 5.23 (models/*/configuration_*.py, modeling_*.py). What is
specific to a family is in families/.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..config import ModelConfig, check_model
from ..errors import CheckpointError, ConfigError
from ..family import Family
from ..validation import attention_sizes, check_size
from .bookkeeping import HARMLESS_VALUES, NO_INFLUENCE
from .families import gemma, glm, gpt, granite, layer_norm, llama, olmo2
from .families.layout import Known, Layout
from .files import IN_THE_FILE, json_text, name_text, phrases
from .rope import Dialect, as_float, foreign_in_rope_keys, rope_from_hugging_face
from .windows import window_of_others

# The model_type of an EncoderDecoder's folder (encoder_decoder.py).
ENCODER_DECODER = "prenorm_encoder_decoder"

# The longest published context is 10 million tokens; a rotary table for this many takes some 10 GB.
LONGEST_CONTEXT = 2**24
_MOST_LAYERS = 2**16

# The sizes: their keys in every family, and their fields in ModelConfig. Every file must have the first five.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_seq_len",
}

# Further fields of ModelConfig, and their keys in the families that have them.
_NUMBERS = {
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "prenorm_dropout",
    "window": "sliding_window",
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
_OF_FAMILY = {field.name for field in dataclasses.fields(Family)}

# The sizes that every file must have, and the keys of every family with the defaults of its config class.
_REQUIRED = tuple(SIZES)[:5]
_COMMON = {
    "head_dim": None,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "prenorm_dropout": 0.0,
}


def _read_ours(known: Known) -> dict[str, Any]:
    family = known["prenorm_family"]
    if family is not None:
        family = Family.from_dict(family)
    names = ("qk_norm", "qkv_bias", "o_bias", "rope_interleaved")
    return {**{name: known[name] for name in names}, "record": family}


# "prenorm" is for models that no family of transformers can express.
OURS = "prenorm"
LAYOUTS: dict[str, Layout] = {
    **llama.LAYOUTS,
    **granite.LAYOUTS,
    **olmo2.LAYOUTS,
    **glm.LAYOUTS,
    **gemma.LAYOUTS,
    **layer_norm.LAYOUTS,
    **gpt.LAYOUTS,
    OURS: Layout(
        architecture="TransformerLM",
        keys={
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "sliding_window": None,
            "qk_norm": False,
            "qkv_bias": False,
            "o_bias": False,
            "rope_interleaved": False,
            "prenorm_family": None,
        },
        read=_read_ours,
        rope=Dialect(ours=True),
    ),
}
# Keys read elsewhere: by rope.py, by windows.py, and when the file is opened.
_READ_ELSEWHERE = {"model_type", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "prenorm_save_id"}

# Families that are not supported, and why.
_NOT_SERVED = {
    "apertus": "its feed-forward has an activation with weights of its own (xIELU)",
}

# Keys that tell what kind of model an unsupported folder holds.
_OTHERWISE = {
    "a mixture of experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "a multimodal model": ("vision_config", "audio_config", "text_config", "image_token_id", "image_token_index"),
}


def config_from_hugging_face(
    fields: Mapping[str, Any], *, source: str = "config.json"
) -> tuple[ModelConfig, tuple[int, ...]]:
    """The model that a config.json describes, and the ids that end a text.

    Absent keys have the default of the family's own config class. Raises CheckpointError, listing every key that is
    missing or not understood; `source` names the file in the message.
    """
    model_type = fields.get("model_type")
    layout = layout_of(model_type, fields, source)
    required = _required(layout)
    problems = [f"{key} is missing" for key in required if key not in fields]
    problems += [f"{key} is null" for key in (*required, *layout.never_null) if fields.get(key, 0) is None]
    if problems := [*problems, *_foreign_keys(layout, fields)]:
        raise CheckpointError(
            f"{source} (model_type {model_type}) must be understood as a whole, but {phrases(problems)}. "
            "Nothing is ignored, because each of these may change what the model computes."
        )
    defaults = _defaults(layout)
    known = {**defaults, **fields}
    known |= {key: defaults[key] for key in layout.null_is_default if known[key] is None}
    known |= {key: known[own] for key, own in layout.own.items()}
    try:
        config = _read(layout, known)
    except ConfigError as error:
        told = [
            f" {key} is absent, so it defaults to {json_text(default)}."
            for key, default in defaults.items()
            if key not in fields and default is not None and re.search(rf"\b{key}\b", str(error))
        ]
        raise CheckpointError(f"{source}: {error}{''.join(told)}") from error
    ids = own_eos(known["eos_token_id"], layout, config.vocab_size)
    return config, eos_from_hugging_face(ids, config.vocab_size, source=source)


def layout_of(model_type: Any, fields: Mapping[str, Any], source: str) -> Layout:
    """The layout of a model_type. Raises CheckpointError for an unsupported one, saying what it seems to be."""
    if isinstance(model_type, str) and model_type in LAYOUTS:
        return LAYOUTS[model_type]
    hint = "; EncoderDecoder.from_pretrained opens this folder" if model_type == ENCODER_DECODER else ""
    if isinstance(model_type, str) and model_type in _NOT_SERVED:
        hint = f": {_NOT_SERVED[model_type]}, which prenorm does not have"
    for what, keys in _OTHERWISE.items():
        if said := [key for key in keys if fields.get(key) is not None]:
            hint = f". Its {said[0]} shows that it is {what}, which prenorm does not support"
            break
    raise CheckpointError(
        f"{source}: model_type must be one of {', '.join(LAYOUTS)}, not {json_text(model_type)}{hint}."
    )


def _required(layout: Layout) -> list[str]:
    """The sizes that a file must have, by its names of them."""
    own = [layout.own.get(key, key) for key in _REQUIRED]
    return [key for key in own if key not in layout.keys]


def _defaults(layout: Layout) -> dict[str, Any]:
    """The default of each key that a family reads."""
    eps = {"rms_norm_eps": 1e-6} if layout.eps_key == "rms_norm_eps" else {}
    return {**_COMMON, **eps, **layout.keys}


def _foreign_keys(layout: Layout, fields: Mapping[str, Any]) -> Iterator[str]:
    known = {*_required(layout), *_defaults(layout), *_READ_ELSEWHERE, *NO_INFLUENCE}
    harmless = {**HARMLESS_VALUES, **layout.harmless}
    for key in sorted(fields.keys() - known):
        if fields[key] is None and key not in harmless:
            continue  # an unknown key without a value
        if key not in harmless:
            yield f"{name_text(key)} is not known"
        elif fields[key] not in harmless[key] and not (key == "auto_map" and _names_their_own(fields[key], fields)):
            yield f"{key} must be {json_text(harmless[key][0])} or absent, not {json_text(fields[key])}"
    if layout.foreign_in_rope is not None:
        yield from layout.foreign_in_rope(fields)
    elif layout.rope is not None:
        yield from foreign_in_rope_keys(fields, layout.rope)


def _names_their_own(auto_map: Any, fields: Mapping[str, Any]) -> bool:
    """Whether auto_map names the code that became the class of the same name in transformers.

    A model that was trained further names the repository of that code, too: owner/name--modeling_phi3.Phi3ForCausalLM.
    """
    model_type, architecture = fields["model_type"], LAYOUTS[fields["model_type"]].architecture
    theirs = {
        "AutoConfig": f"configuration_{model_type}.{architecture.removesuffix('ForCausalLM')}Config",
        "AutoModelForCausalLM": f"modeling_{model_type}.{architecture}",
    }
    return isinstance(auto_map, dict) and all(
        isinstance(code, str) and code.rpartition("--")[2] == theirs.get(key) for key, code in auto_map.items()
    )


def _read(layout: Layout, known: Known) -> ModelConfig:
    """The config that these fields, with the family's defaults, describe. Raises ConfigError.

    Everything is first checked under the file's own names, so that messages name what the file contains.
    """
    for key in (*_required(layout), layout.own.get("max_position_embeddings", "max_position_embeddings")):
        check_size(key, known[key], spelling=IN_THE_FILE)
    for key, most in (("max_position_embeddings", LONGEST_CONTEXT), ("num_hidden_layers", _MOST_LAYERS)):
        if known[key] > most:
            raise ConfigError(f"{layout.own.get(key, key)} must be at most {most}, not {known[key]}.")
    names = {**{field: layout.own.get(key, key) for key, field in SIZES.items()}, **_NUMBERS}
    if layout.eps_key is not None:
        names["eps"] = layout.eps_key
    spelling = IN_THE_FILE._replace(name=lambda field: names.get(field, field))
    heads: Any = (known.get(names[name]) for name in ("d_model", "num_heads", "num_kv_heads", "head_dim"))
    _, head_dim = attention_sizes(*heads, rotary=layout.rope is not None, spelling=spelling)
    read = {**layout.read(known), **_rotation(layout, known, head_dim)}
    record = read.pop("record", None) or Family(**{name: read.pop(name) for name in _OF_FAMILY & read.keys()})
    fields = {
        **{field: known.get(key) for field, key in names.items()},
        **({} if layout.eps_key is None else {"eps": as_float(known[layout.eps_key])}),
        "dropout": 0.0 if known["prenorm_dropout"] is None else as_float(known["prenorm_dropout"]),
        "rope_interleaved": layout.interleaved,
        "window": None if "layer_types" in layout.keys else window_of_others(known),
        **read,
        "family": None if record == Family() else record,
    }
    check_model({**_DEFAULTS, **fields}, spelling)
    return ModelConfig(**fields)


def _rotation(layout: Layout, known: Known, head_dim: int) -> dict[str, Any]:
    """The rotary base and scaling, the number of rotated features, and the context that these are meant for."""
    max_seq_len = known["max_position_embeddings"]
    if layout.rope is None:
        return {"max_seq_len": max_seq_len}
    if layout.read_rope is not None:
        read = layout.read_rope(known, max_seq_len)
    else:
        theta, scaling, share = rope_from_hugging_face(known, max_seq_len, layout.rope)
        read = {"rope_theta": theta, "rope_scaling": scaling}
        if share != 1:
            read["rotary_dim"] = rotary_dim = int(head_dim * share)
            if rotary_dim < 2 or rotary_dim % 2:
                raise ConfigError(
                    "partial_rotary_factor must give an even number of features to rotate, but "
                    f"{json_text(share)} of head_dim {head_dim} is {rotary_dim}."
                )
    if layout is LAYOUTS[OURS]:
        return read
    # The length of the original training is no limit: transformers runs beyond it, and so do these scalings.
    reaches = [max_seq_len]
    for scaling in (read["rope_scaling"], read.get("window_rope_scaling")):
        if scaling is not None and scaling.kind == "dynamic":
            reaches.append(LONGEST_CONTEXT)
        if scaling is not None and scaling.kind == "yarn":
            reaches.append(int(min(LONGEST_CONTEXT, scaling.factor * scaling.original_max_seq_len)))
    return {**read, "max_seq_len": max(reaches)}


def own_eos(value: Any, layout: Layout, vocab_size: int) -> Any:
    """The end-of-text ids in a key; if they are the config class's defaults, only those in the vocabulary.

    The defaults are the ids of the family's first tokenizer, and are also written next to smaller vocabularies.
    """
    if value is None or value != layout.keys.get("eos_token_id"):
        return value
    return [id for id in (value if isinstance(value, list) else [value]) if id < vocab_size]


def eos_from_hugging_face(
    value: Any, vocab_size: int, *, source: str = "config.json", key: str = "eos_token_id"
) -> tuple[int, ...]:
    """The ids that end a text, from the number, list or null of a key in config.json."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for id in ids:
        if type(id) is not int or not 0 <= id < vocab_size:
            raise CheckpointError(f"{source}: {key} must be ids from 0 to {vocab_size - 1}, not {json_text(id)}.")
    return tuple(ids)


def eos_to_hugging_face(eos_token_ids: tuple[int, ...]) -> int | list[int] | None:
    """End-of-text ids as config.json has them: null, a number, or a list."""
    return list(eos_token_ids) if len(eos_token_ids) > 1 else next(iter(eos_token_ids), None)
