"""Rotary embedding in Hugging Face's words: its keys in config.json, and its order of rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from ..config import RopeScaling
from ..errors import ConfigError

DEFAULT_THETA = 10000.0  # of every family's config class

# For each rope_type: the keys that belong to it, and the field of RopeScaling that each one is.
_SCALING_KEYS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_seq_len",
    },
}
_OTHER_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def rope_to_hugging_face(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The three keys that tell of rotary embedding: transformers 4 reads the first two, transformers 5 the last."""
    parameters = {"rope_type": scaling.kind if scaling else "default"}
    for key, field in _SCALING_KEYS[parameters["rope_type"]].items():
        parameters[key] = getattr(scaling, field)
    theta = float(theta)
    return {
        "rope_theta": theta,
        "rope_scaling": parameters if scaling else None,
        "rope_parameters": {**parameters, "rope_theta": theta},
    }


def rope_from_hugging_face(fields: Mapping[str, Any], max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """The base and the scaling that a config.json names, in the old keys, the new one or both.

    `foreign_in_rope_keys` has found nothing. Raises ConfigError when the keys contradict each other or one is missing.
    """
    thetas = {"rope_theta": fields["rope_theta"]} if "rope_theta" in fields else {}
    scalings: dict[str, RopeScaling | None] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if key in fields:
            parameters = fields[key] or {}
            if not isinstance(parameters, dict):
                raise ConfigError(f"{key} must be an object or null, not {parameters!r}.")
            if "rope_theta" in parameters:
                thetas[f"{key}.rope_theta"] = parameters["rope_theta"]
            scalings[key] = _scaling(key, parameters, max_seq_len)
    for named in (thetas, scalings):
        first, *others = named.values() or [None]
        if any(other != first for other in others):
            contradiction = ", ".join(f"{key} gives {value}" for key, value in named.items())
            raise ConfigError(f"the keys of rotary embedding contradict each other: {contradiction}; keep one of them.")
    return as_float(next(iter(thetas.values()), DEFAULT_THETA)), next(iter(scalings.values()), None)


def foreign_in_rope_keys(fields: Mapping[str, Any]) -> Iterator[str]:
    """What inside rope_scaling and rope_parameters is not understood, as a phrase for each."""
    for key in ("rope_scaling", "rope_parameters"):
        parameters = fields.get(key)
        if not isinstance(parameters, dict):
            continue
        kind = _kind(parameters)
        if kind not in _SCALING_KEYS:
            yield f"{key} has rope_type {kind!r}, where {', '.join(_SCALING_KEYS)} are known"
            continue
        for name in sorted(parameters.keys() - _SCALING_KEYS[kind].keys() - _OTHER_KEYS):
            yield f"{key}.{name} is not known for rope_type {kind!r}"
        if parameters.get("partial_rotary_factor", 1.0) != 1.0:
            yield f"{key}.partial_rotary_factor must be 1.0 or absent"


def _kind(parameters: Mapping[str, Any]) -> str:
    return str(parameters.get("rope_type", parameters.get("type", "default")))


def _scaling(key: str, parameters: Mapping[str, Any], max_seq_len: int) -> RopeScaling | None:
    kind = _kind(parameters)
    if parameters.get("type", kind) != kind:
        raise ConfigError(f"{key}: rope_type is {kind!r}, but type is {parameters['type']!r}; keep one of them.")
    if kind == "default":
        return None
    # Hugging Face takes the model's own length where the length before stretching is not given.
    given = {"original_max_position_embeddings": max_seq_len, **parameters}
    missing = [name for name in _SCALING_KEYS[kind] if name not in given]
    if missing:
        raise ConfigError(f"{key}: rope_type {kind!r} needs {', '.join(missing)}.")
    values = {field: as_float(given[name]) for name, field in _SCALING_KEYS[kind].items()}
    if kind == "llama3":
        values["original_max_seq_len"] = given["original_max_position_embeddings"]
    return RopeScaling(kind, **values)  # type: ignore[arg-type]


def as_float(value: Any) -> Any:
    """A whole number as a float, since JSON may write 1000000 for 1000000.0; anything else as it is."""
    return float(value) if type(value) is int else value


def half_split(rows: Shaped[Tensor, "*shape"], head_dim: int) -> Shaped[Tensor, "*shape"]:
    """The rows of each head, reordered from pairs (2i, 2i+1) to pairs (i, i + head_dim/2).

    An interleaved model with the rows of its q and k weights, biases and norms in this order, rotated half-split,
    has the same scores: a score is a sum over pairs, and each pair keeps its frequency.
    """
    heads = rows.shape[0] // head_dim
    pairs = rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
