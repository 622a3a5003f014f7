"""The attention window in Hugging Face's words: one for all layers, or none; a mixed model is refused."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..validation import check_flag, check_size
from .files import IN_THE_FILE, json_text


def window_of_qwen(known: Mapping[str, Any]) -> int | None:
    """The window of every layer. Raises ConfigError when some layers have one and others none."""
    switch, first, num_layers = (known[key] for key in ("use_sliding_window", "max_window_layers", "num_hidden_layers"))
    check_flag("use_sliding_window", switch, spelling=IN_THE_FILE)
    check_size("max_window_layers", first, at_least=0, spelling=IN_THE_FILE)
    window: int | None = known["sliding_window"] if switch else None
    kind = _kind_of_layers(known)
    if kind is None:
        if window is not None and 0 < first < num_layers:
            raise ConfigError(
                f"every layer must have the same window, but max_window_layers gives the first {first} of "
                f"{num_layers} layers none; no such mixed model can be held."
            )
        return window if first <= 0 else None
    if kind == "full_attention":
        return None
    if window is None:
        raise ConfigError("layer_types says sliding_attention, but use_sliding_window with sliding_window gives none.")
    return window


def window_of_others(known: Mapping[str, Any]) -> int | None:
    """The window of a family whose sliding_window holds for every layer. Raises ConfigError where others deny that."""
    window: int | None = known.get("sliding_window")
    given = f"sliding_window gives {'none' if window is None else window}"
    if (kind := _kind_of_layers(known)) not in (None, "full_attention" if window is None else "sliding_attention"):
        raise ConfigError(f"layer_types says {kind}, but {given}; leave layer_types out.")
    if window is not None and known.get("use_sliding_window") is False:
        raise ConfigError(f"use_sliding_window is false, but {given}; keep one of them.")
    return window


def _kind_of_layers(known: Mapping[str, Any]) -> str | None:
    """What layer_types says of all layers, None where it says nothing."""
    types, num_layers = known.get("layer_types"), known["num_hidden_layers"]
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers:
        raise ConfigError(f"layer_types must name each of the {num_layers} layers, but it is {json_text(types)}.")
    kinds = sorted({str(kind) for kind in types})
    if kinds not in (["full_attention"], ["sliding_attention"]):
        raise ConfigError(
            f"layer_types must be all full_attention or all sliding_attention, not {', '.join(kinds)}; "
            "no mixed model can be held."
        )
    return kinds[0]
