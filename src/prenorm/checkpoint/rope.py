"""Rotary embedding in Hugging Face's words: its keys in config.json, and its order of rows."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from ..config import RopeScaling, check_scaling
from ..errors import ConfigError
from ..validation import check_number
from .files import IN_THE_FILE, json_text

DEFAULT_THETA = 10000.0  # of every family's config class

# The old key and the new one that hold an object. transformers takes the first that says anything.
SCALING_KEYS = ("rope_scaling", "rope_parameters")

# For each rope_type: the keys that belong to it, and the field of RopeScaling that each one is.
_PARTS_OF = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_seq_len",
    },
}
_SCALING_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RopeScaling)}
_OTHER_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def rope_to_hugging_face(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The three keys that tell of rotary embedding: transformers 4 reads the first two, transformers 5 the last."""
    parameters = {"rope_type": scaling.kind if scaling else "default"}
    for key, field in _PARTS_OF[parameters["rope_type"]].items():
        parameters[key] = getattr(scaling, field)
    theta = float(theta)
    return {
        "rope_theta": theta,
        "rope_scaling": parameters if scaling else None,
        "rope_parameters": {**parameters, "rope_theta": theta},
    }


def rope_from_hugging_face(fields: Mapping[str, Any], max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """The base and the scaling that a config.json names, in the old keys, the new one or both.

    A null, an empty object and an absent key say nothing.
    `foreign_in_rope_keys` has found nothing. Raises ConfigError when the keys contradict each other or one is missing.
    """
    said = _said(fields)
    thetas = {f"{key}.rope_theta": parameters.get("rope_theta") for key, parameters in said.items()}
    thetas = {
        key: theta for key, theta in {"rope_theta": fields.get("rope_theta"), **thetas}.items() if theta is not None
    }
    if "rope_scaling" in said and list(thetas) == ["rope_parameters.rope_theta"]:
        # transformers reads rope_scaling alone then, and takes its default for the base.
        thetas["rope_scaling without a rope_theta"] = DEFAULT_THETA
    if not thetas and "rope_theta" in {*fields, *(name for parameters in said.values() for name in parameters)}:
        raise ConfigError("rope_theta must be a finite number or absent, not null.")
    scalings = {key: _scaling(key, parameters, max_seq_len) for key, parameters in said.items()}
    for named in (thetas, scalings):
        first, *others = named.values() or [None]
        if any(other != first for other in others):
            contradiction = ", ".join(f"{key} gives {_told(value)}" for key, value in named.items())
            raise ConfigError(f"the keys of rotary embedding contradict each other: {contradiction}; keep one of them.")
    name, theta = next(iter(thetas.items()), ("rope_theta", DEFAULT_THETA))
    check_number(name, as_float(theta), above=0.0, spelling=IN_THE_FILE)
    return as_float(theta), next(iter(scalings.values()), None)


def foreign_in_rope_keys(fields: Mapping[str, Any]) -> Iterator[str]:
    """What inside rope_scaling and rope_parameters is not understood, as a phrase for each."""
    for key in SCALING_KEYS:
        parameters = fields.get(key) or {}
        if not isinstance(parameters, dict):
            yield f"{key} must be an object or null, not {json_text(parameters)}"
            continue
        kind = _kind(parameters)
        if not isinstance(kind, str) or kind not in _PARTS_OF:
            yield f"{key} has rope_type {json_text(kind)}, where {', '.join(_PARTS_OF)} are known"
            continue
        given = {name for name, value in parameters.items() if value is not None}
        for name in sorted(given - _PARTS_OF[kind].keys() - _OTHER_KEYS):
            yield f"{key}.{name} is not known for rope_type {json_text(kind)}"
        share = parameters.get("partial_rotary_factor")
        if share not in (None, 1.0):
            yield f"{key}.partial_rotary_factor must be 1.0 or absent, not {json_text(share)}"


def _said(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The objects that say anything, by their keys."""
    return {key: fields[key] for key in SCALING_KEYS if fields.get(key)}


def _told(value: Any) -> str:
    """A base, or the scaling of a key, in a contradiction."""
    if not isinstance(value, RopeScaling):
        return "no scaling" if value is None else json_text(value)
    kept = {name: getattr(value, field) for name, field in _PARTS_OF[value.kind].items()}
    return json_text({"rope_type": value.kind, **kept})


def _kind(parameters: Mapping[str, Any]) -> Any:
    return parameters.get("rope_type", parameters.get("type", "default"))


def _scaling(key: str, parameters: Mapping[str, Any], max_seq_len: int) -> RopeScaling | None:
    kind = _kind(parameters)
    if parameters.get("type") not in (None, kind):
        raise ConfigError(
            f"{key}: rope_type is {json_text(kind)}, but type is {json_text(parameters['type'])}; keep one of them."
        )
    if kind == "default":
        return None
    # Hugging Face takes the model's own length where the length before stretching is not given.
    given = {"original_max_position_embeddings": max_seq_len, **parameters}
    missing = [name for name in _PARTS_OF[kind] if name not in given]
    if missing:
        raise ConfigError(f"{key}: rope_type {json_text(kind)} needs {', '.join(missing)}.")
    values = {field: as_float(given[name]) for name, field in _PARTS_OF[kind].items()}
    if kind == "llama3":
        values["original_max_seq_len"] = _as_whole(given["original_max_position_embeddings"])
    names = {f"rope_scaling {field}": f"{key}.{name}" for name, field in _PARTS_OF[kind].items()}
    check_scaling(
        {**_SCALING_DEFAULTS, "kind": kind, **values}, IN_THE_FILE._replace(name=lambda name: names.get(name, name))
    )
    return RopeScaling(kind, **values)


def as_float(value: Any) -> Any:
    """A whole number as a float, since JSON may write 1000000 for 1000000.0; anything else as it is."""
    return float(value) if type(value) is int and abs(value) <= sys.float_info.max else value


def _as_whole(value: Any) -> Any:
    """8192.0 as 8192, which transformers takes for the same length; anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


def half_split(rows: Shaped[Tensor, "*shape"], head_dim: int) -> Shaped[Tensor, "*shape"]:
    """The rows of each head, reordered from pairs (2i, 2i+1) to pairs (i, i + head_dim/2).

    An interleaved model with the rows of its q and k weights, biases and norms in this order, rotated half-split,
    has the same scores: a score is a sum over pairs, and each pair keeps its frequency.
    """
    heads = rows.shape[0] // head_dim
    pairs = rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
