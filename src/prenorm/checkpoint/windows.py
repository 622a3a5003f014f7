"""The attention window in Hugging Face's keys: for all layers, or layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..validation import check_flag, check_size
from .files import IN_THE_FILE, json_text

FULL, SLIDING = "full_attention", "sliding_attention"


def windows_of_qwen(known: Mapping[str, Any]) -> dict[str, Any]:
    """Windows from layer max_window_layers on if use_sliding_window is set, unless layer_types overrides them."""
    switch, first, num_layers = (known[key] for key in ("use_sliding_window", "max_window_layers", "num_hidden_layers"))
    check_flag("use_sliding_window", switch, spelling=IN_THE_FILE)
    check_size("max_window_layers", first, at_least=0, spelling=IN_THE_FILE)
    window: int | None = known["sliding_window"] if switch else None
    kinds = kinds_of_layers(known)
    if kinds is None:
        kinds = [FULL if window is None or layer < first else SLIDING for layer in range(num_layers)]
    if SLIDING in kinds and window is None:
        raise ConfigError(
            "layer_types has sliding_attention, but use_sliding_window and sliding_window set no window; set both, or "
            "use full_attention."
        )
    return windows_of(kinds, window)


def windows_of(kinds: Sequence[str], window: int | None) -> dict[str, Any]:
    """The fields of ModelConfig or Family for the layers that have the window. Raises ConfigError."""
    if SLIDING not in kinds:
        return {"window": None}
    if window is None:
        raise ConfigError(
            "layer_types has sliding_attention, but sliding_window is not set; set it, or use full_attention."
        )
    check_size("sliding_window", window, spelling=IN_THE_FILE)
    if FULL not in kinds:
        return {"window": window}
    return {"window": None, "windows": tuple(window if kind == SLIDING else 0 for kind in kinds)}


def window_of_others(known: Mapping[str, Any]) -> int | None:
    """The window of a family whose sliding_window applies to every layer. Raises ConfigError if other keys disagree."""
    window: int | None = known.get("sliding_window")
    given = f"sliding_window is {'not set' if window is None else window}"
    kinds = set(kinds_of_layers(known) or ())
    if len(kinds) > 1:
        raise ConfigError(
            "layer_types must be all full_attention or all sliding_attention in this family, but it mixes them; "
            "model_type ministral or qwen2 supports both kinds in one model."
        )
    if kinds - {FULL if window is None else SLIDING}:
        raise ConfigError(f"layer_types has {kinds.pop()}, but {given}; leave layer_types out.")
    if window is not None and known.get("use_sliding_window") is False:
        raise ConfigError(f"use_sliding_window is false, but {given}; keep one of them.")
    return window


def kinds_of_layers(known: Mapping[str, Any]) -> list[str] | None:
    """The kind of each layer from layer_types, None if it is absent. Raises ConfigError."""
    types, num_layers = known.get("layer_types"), known["num_hidden_layers"]
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers:
        raise ConfigError(f"layer_types must name each of the {num_layers} layers, but it is {json_text(types)}.")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise ConfigError(f"layer_types must be {FULL} or {SLIDING}, not {json_text(kind)}.")
    return types
