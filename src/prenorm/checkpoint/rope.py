"""Rotary embedding in Hugging Face's layout: its keys in config.json, and its order of rows."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxtyping import Shaped
from torch import Tensor

from ..errors import ConfigError
from ..rope_scaling import RopeScaling, check_factors, check_scaling
from ..validation import check_number
from .files import IN_THE_FILE, json_text, name_text

DEFAULT_THETA = 10000.0  # of most families' config classes

# The old and the new key for the object. transformers uses the first that is not empty.
SCALING_KEYS = ("rope_scaling", "rope_parameters")
ORIGINAL = "original_max_position_embeddings"

# For each rope_type, its required and its optional keys; each is a field of RopeScaling.
_NEEDED = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {"factor": "factor", ORIGINAL: "original_max_seq_len"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        ORIGINAL: "original_max_seq_len",
    },
    "longrope": {
        "short_factor": "short_factors",
        "long_factor": "long_factors",
        ORIGINAL: "original_max_seq_len",
    },
}
_OPTIONAL = {
    "yarn": {
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
    },
    "longrope": {"attention_factor": "attention_factor", "factor": "factor"},
}
_MSCALES = ("mscale", "mscale_all_dim")  # for yarn, another way to give the attention_factor
_SCALING_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RopeScaling)}
_OTHER_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


class Dialect(NamedTuple):
    """How a family's config class deviates in these keys."""

    theta: float = DEFAULT_THETA  # the default
    types: tuple[str, ...] = tuple(_NEEDED)
    aliases: Mapping[str, str] = {}  # older names of types
    partial: float | None = None  # the share of a head that is rotated where the file is silent; None: always all
    ours: bool = False  # whether a dynamic scaling says its own length before stretching
    original: int | None = None  # a key beside the objects that comes first, where the file is silent; None: no key
    theta_key: str = "rope_theta"  # its names of these beside the objects
    share_key: str = "partial_rotary_factor"


PLAIN = Dialect()


class Rope(NamedTuple):
    """The content of these keys: the base, the scaling, and the fraction of a head that is rotated."""

    theta: float
    scaling: RopeScaling | None
    share: float = 1.0


def rope_to_hugging_face(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The three keys of rotary embedding: transformers 4 reads the first two, transformers 5 the last."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        optional = _OPTIONAL.get(scaling.kind, {})
        parameters = {"rope_type": scaling.kind}
        parameters |= {key: _as_json(getattr(scaling, field)) for key, field in _NEEDED[scaling.kind].items()}
        parameters |= {
            key: getattr(scaling, field)
            for key, field in optional.items()
            if field == "factor" or getattr(scaling, field) != _SCALING_DEFAULTS[field]
        }
    theta = float(theta)
    return {
        "rope_theta": theta,
        "rope_scaling": parameters if scaling else None,
        "rope_parameters": {**parameters, "rope_theta": theta},
    }


def rope_from_hugging_face(fields: Mapping[str, Any], max_seq_len: int, dialect: Dialect = PLAIN) -> Rope:
    """The base and the scaling in a config.json, from the old keys, the new one or both.

    A null, an empty object and an absent key are all ignored. Call `foreign_in_rope_keys` first.
    Raises ConfigError when the keys contradict each other or one is missing.
    """
    said = _said(fields)
    thetas = {f"{key}.rope_theta": parameters.get("rope_theta") for key, parameters in said.items()}
    thetas = {
        key: theta
        for key, theta in {dialect.theta_key: fields.get(dialect.theta_key), **thetas}.items()
        if theta is not None
    }
    if "rope_scaling" in said and list(thetas) == ["rope_parameters.rope_theta"]:
        # transformers then reads only rope_scaling, and uses the default base.
        thetas["rope_scaling without a rope_theta"] = dialect.theta
    if not thetas and "rope_theta" in {*fields, *(name for parameters in said.values() for name in parameters)}:
        raise ConfigError("rope_theta must be a finite number or absent, not null.")
    scalings = {key: _scaling(key, fields, parameters, max_seq_len, dialect) for key, parameters in said.items()}
    shares = _shares(fields, said, dialect)
    for named in (thetas, scalings, shares):
        first, *others = named.values() or [None]
        if any(other != first for other in others):
            contradiction = ", ".join(f"{key} gives {_told(value)}" for key, value in named.items())
            raise ConfigError(f"the keys of rotary embedding must agree, but {contradiction}; keep one of them.")
    name, theta = next(iter(thetas.items()), (dialect.theta_key, dialect.theta))
    check_number(name, as_float(theta), above=0.0, spelling=IN_THE_FILE)
    name, share = next(iter(shares.items()), (dialect.share_key, dialect.partial or 1.0))
    check_number(name, share, above=0.0, spelling=IN_THE_FILE)
    if share > 1:
        raise ConfigError(f"{name} must be at most 1, not {json_text(share)}.")
    return Rope(as_float(theta), next(iter(scalings.values()), None), share)


def foreign_in_rope_keys(fields: Mapping[str, Any], dialect: Dialect = PLAIN) -> Iterator[str]:
    """The problems inside rope_scaling and rope_parameters that make them not understood, as a phrase for each."""
    for name, theirs in (("rope_theta", dialect.theta_key), ("partial_rotary_factor", dialect.share_key)):
        if name != theirs and fields.get(name) is not None:
            yield f"{name} is called {theirs} in this family"
    for key in SCALING_KEYS:
        parameters = fields.get(key) or {}
        if not isinstance(parameters, dict):
            yield f"{key} must be an object or null, not {json_text(parameters)}"
            continue
        yield from foreign_in_rope_object(key, parameters, dialect)


def foreign_in_rope_object(key: str, parameters: Mapping[str, Any], dialect: Dialect = PLAIN) -> Iterator[str]:
    """The problems inside one such object."""
    kind = _kind(parameters, dialect)
    if not isinstance(kind, str) or kind not in dialect.types:
        yield f"{key} has rope_type {json_text(kind)}, but only {', '.join(dialect.types)} are supported"
        return
    given = {name for name, value in parameters.items() if value is not None}
    if kind == "dynamic" and dialect.ours:
        given.discard(ORIGINAL)
    known = {*_NEEDED[kind], *_OPTIONAL.get(kind, {}), *(_MSCALES if kind == "yarn" else ()), *_OTHER_KEYS}
    for name in sorted(given - known):
        yield f"{key}.{name_text(name)} is not known for rope_type {json_text(kind)}"
    share = parameters.get("partial_rotary_factor")
    if dialect.partial is not None and share is None and "partial_rotary_factor" in parameters:
        yield f"{key}.partial_rotary_factor is null"
    if dialect.partial is None and share not in (None, 1.0):
        yield f"{key}.partial_rotary_factor must be 1.0 or absent, not {json_text(share)}"


def scaling_in(key: str, parameters: Mapping[str, Any], max_seq_len: int, dialect: Dialect) -> RopeScaling | None:
    """The scaling that one object describes."""
    return _scaling(key, {}, parameters, max_seq_len, dialect)


def _said(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The non-empty objects, by their keys."""
    return {key: fields[key] for key in SCALING_KEYS if fields.get(key)}


def _shares(fields: Mapping[str, Any], said: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    if dialect.partial is None:
        return {}
    shares = {f"{key}.partial_rotary_factor": each.get("partial_rotary_factor") for key, each in said.items()}
    shares = {dialect.share_key: fields.get(dialect.share_key), **shares}
    shares = {key: as_float(share) for key, share in shares.items() if share is not None}
    if "rope_scaling" in said and list(shares) == ["rope_parameters.partial_rotary_factor"]:
        shares["rope_scaling without a partial_rotary_factor"] = dialect.partial  # as with the base
    return shares


def _told(value: Any) -> str:
    """A base, or the scaling of a key, for the message about a contradiction."""
    if not isinstance(value, RopeScaling):
        return "no scaling" if value is None else json_text(value)
    kept = {name: _as_json(getattr(value, field)) for name, field in _NEEDED[value.kind].items()}
    return json_text({"rope_type": value.kind, **kept})


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _kind(parameters: Mapping[str, Any], dialect: Dialect) -> Any:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return dialect.aliases.get(kind, kind) if isinstance(kind, str) else kind


def _scaling(
    key: str, fields: Mapping[str, Any], parameters: Mapping[str, Any], max_seq_len: int, dialect: Dialect
) -> RopeScaling | None:
    kind = _kind(parameters, dialect)
    older = parameters.get("type")
    if older is not None and (dialect.aliases.get(older, older) if isinstance(older, str) else older) != kind:
        raise ConfigError(
            f"{key}: rope_type is {json_text(kind)}, but type is {json_text(parameters['type'])}; keep one of them."
        )
    if kind == "default":
        return None
    given = {name: value for name, value in parameters.items() if value is not None or name in _NEEDED[kind]}
    if dialect.original is not None:
        given[ORIGINAL] = _original(key, fields, given, dialect)
    # Hugging Face uses the model's own length if the original length is not given.
    given = {ORIGINAL: max_seq_len, **given}
    missing = [name for name in _NEEDED[kind] if name not in given]
    if missing:
        raise ConfigError(f"{key}: rope_type {json_text(kind)} needs {', '.join(missing)}.")
    fields_of = {**_NEEDED[kind], **_OPTIONAL.get(kind, {})}
    names = {f"rope_scaling {field}": f"{key}.{name}" for name, field in fields_of.items()}
    spelling = IN_THE_FILE._replace(name=lambda name: names.get(name, name))
    values = {field: as_float(given[name]) for name, field in fields_of.items() if name in given}
    if kind == "dynamic":
        values["original_max_seq_len"] = given[ORIGINAL] if dialect.ours else max_seq_len
    elif kind != "linear":
        values["original_max_seq_len"] = _as_whole(given[ORIGINAL])
    if kind in ("yarn", "longrope"):
        values |= _read_further(key, kind, given, values, max_seq_len)
    for field in ("short_factors", "long_factors"):
        if field in values:
            check_factors(f"rope_scaling {field}", values[field], spelling)
            values[field] = tuple(map(as_float, values[field]))
    check_scaling({**_SCALING_DEFAULTS, "kind": kind, **values}, spelling)
    return RopeScaling(kind, **values)


def _original(key: str, fields: Mapping[str, Any], given: Mapping[str, Any], dialect: Dialect) -> Any:
    """The original length, for a family whose class reads it from the top level. Raises ConfigError."""
    outside, inside = fields.get(ORIGINAL, dialect.original), given.get(ORIGINAL)
    if inside is not None and inside != outside:
        absent = "" if ORIGINAL in fields else " (absent, so that is the default)"
        raise ConfigError(
            f"{key}.{ORIGINAL} is {json_text(inside)}, but {ORIGINAL} is {json_text(outside)}{absent}; "
            "keep one of them."
        )
    return outside


def _read_further(
    key: str, kind: str, given: Mapping[str, Any], values: Mapping[str, Any], max_seq_len: int
) -> dict[str, Any]:
    """Values that yarn and longrope derive when keys are absent, as transformers does."""
    original = values["original_max_seq_len"]
    factor = values.get("factor")
    read: dict[str, Any] = {}
    if factor is None and type(original) is int and original > 0:
        factor = read["factor"] = max_seq_len / original
    if kind == "longrope":
        # Below 1 it has no effect, except that the attention_factor is derived from it.
        if isinstance(factor, float) and 0 < factor < 1:
            read["factor"] = 1.0
        return read
    read |= {name: _SCALING_DEFAULTS[name] for name in ("beta_fast", "beta_slow") if not given.get(name)}
    mscales = [as_float(given.get(name)) for name in _MSCALES]
    for name, mscale in zip(_MSCALES, mscales, strict=True):
        if mscale is not None:
            check_number(f"{key}.{name}", mscale, at_least=0.0, spelling=IN_THE_FILE)
    if values.get("attention_factor") is None and all(mscales) and isinstance(factor, float) and factor >= 1:
        above, below = (0.1 * mscale * math.log(factor) + 1 for mscale in mscales)
        read["attention_factor"] = above / below
    return read


def as_float(value: Any) -> Any:
    """An integer as a float, since JSON may have 1000000 for 1000000.0; anything else unchanged."""
    return float(value) if type(value) is int and abs(value) <= sys.float_info.max else value


def _as_whole(value: Any) -> Any:
    """8192.0 as 8192, which transformers treats as the same length; anything else unchanged."""
    return int(value) if type(value) is float and value.is_integer() else value


def half_split(rows: Shaped[Tensor, "*shape"], head_dim: int) -> Shaped[Tensor, "*shape"]:
    """The rows of each head, reordered from pairs (2i, 2i+1) to pairs (i, i + head_dim/2).

    With the rows of its q and k weights, biases and norms in this order, an interleaved model has the same scores under
    half-split rotation: a score is a sum over pairs, and each pair keeps its frequency.
    """
    heads = rows.shape[0] // head_dim
    pairs = rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
