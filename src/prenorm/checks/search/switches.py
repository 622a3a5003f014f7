"""The switches of the reference, one fault each, which each step of the search sets one or two at a time."""

from collections.abc import Iterable
from typing import Any

from ..formula.variants import ACTIVATIONS, FREQUENCIES, RARE, SCALES, SHIFTS, SQUARES, TABLES, UNBRACKETED

Switch = dict[str, Any]
"""Fields of Spec that change together: one fault."""

ROTATION = frozenset(
    {"mixed", "rope_axis", "rope_input", "frequency", "turn", "tables", "query_shift", "key_shift", "rope_on"}
)
"""Two changes to the rotation hide each other, unless one of them is what is rotated."""


LAYER_NORM_SLIPS = ("layer_no_sqrt", "layer_unbiased_no_sqrt", *UNBRACKETED)
"""Kinds that somebody writes who means a LayerNorm."""


def _of_both_norms(kind: str) -> Iterable[Switch]:
    """In both places, and in one of them."""
    yield {"norm1": kind, "norm2": kind}
    yield {"norm1": kind}
    yield {"norm2": kind}


def _norm_switches() -> Iterable[Switch]:
    for kind in ("none", "gain", *SQUARES):
        if kind not in ("rms", "all", *LAYER_NORM_SLIPS):
            yield from _of_both_norms(kind)
    yield {"weight1": "none", "weight2": "none"}
    yield {"weight1": "none"}
    yield {"weight2": "none"}
    for eps in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        yield {"eps1": eps, "eps2": eps}
        yield {"eps1": eps, "eps2": eps, "eps_place1": "outside", "eps_place2": "outside"}
        yield {"eps1": eps}
        yield {"eps2": eps}


ONE_TOKEN: list[Switch] = [
    {"residual1": "none"},
    {"residual2": "none"},
    {"residual1": "normed"},
    {"residual2": "normed"},
    {"residual1": "normed", "residual2": "normed"},
    {"residual1": "doubled"},
    {"residual2": "doubled"},
    {"residual1": "doubled", "residual2": "doubled"},
    {"residual2": "input"},
    {"residual2": "both"},
    {"residual2": "attention"},
    {"post": "12"},
    {"post": "1"},
    {"post": "2"},
    *({"post": post, "pre_too": True} for post in ("12", "1", "2")),
    *({"post": post, "before_sum": True} for post in ("12", "1", "2")),
    {"parallel": "own"},
    {"parallel": "shared"},
    {"output": "none"},
    {"scaled_after": True},
    {"split": "dims_first"},
    {"tiled": True},
    *({"merge": merge} for merge in ("dims_first", "mean", "sum")),
    *_norm_switches(),
    *({"activation": name} for name in ACTIVATIONS if name != "silu"),
    *({"gating": gating} for gating in ("product", "plain", "both", "sum", "up squared")),
    *({"gating": "product", "activation": name} for name in ("gelu", "relu", "sigmoid", "tanh")),
]

SLIPS_OF_LAYER_NORM: list[Switch] = [switch for kind in LAYER_NORM_SLIPS for switch in _of_both_norms(kind)]
"""Of one token too, for blocks that have LayerNorms otherwise."""

ZERO_SCORES_PLAIN: list[Switch] = [
    *({"mask": mask} for mask in ("next", "future", "future_strict")),
    *(
        {"mask": mask, "empty_rows": empty, "fill": fill, "fill_by": by}
        for mask in ("strict",)
        for empty, fill, by in (
            ("nan", -float("inf"), "replacing"),
            ("zero", -float("inf"), "replacing"),
            ("nan", -1e9, "replacing"),
            ("nan", -1e9, "adding"),
        )
    ),
    {"mask": "future_strict", "empty_rows": "zero"},
    {"mask": "future_strict", "fill": -1e9},
    {"mask": "future_strict", "fill": -1e9, "fill_by": "adding"},
    *(
        {"mask": mask, "fill": fill, "fill_by": by}
        for mask in ("causal",)
        for fill in (0.0, 1.0, -0.1, -1.0, -2.0, -3.0, -5.0, -10.0, 1e-9)  # 1: a boolean mask that is added
        for by in ("replacing", "adding")
        if (fill, by) != (0.0, "adding")
    ),
    {"softmax": "queries"},
    {"softmax": "queries, with the largest of the keys"},
    {"softmax": "heads"},
    {"softmax": "nothing"},
    {"softmax": "none", "fill": 0.0},
    {"masked_after": True},
    {"split": "swapped"},
    *({"split": split} for split in ("flat", "dims_first", "flat_dims")),
    *({"merge": merge} for merge in ("flat", "flat_dims", "dims_first")),
    *({"split": "flat", "merge": merge} for merge in ("flat", "flat_dims")),
    {"split": "dims_first", "merge": "dims_first"},
    *({"split": split, "split_of": "v"} for split in ("flat", "dims_first", "flat_dims")),
    {"norm1": "all", "norm2": "all"},
    {"norm1": "all"},
    {"norm2": "all"},
]

ZERO_SCORES_TURNED: list[Switch] = [
    *({"rope_on": on} for on in ("qkv", "v", "kv", "qv")),
    *({"rope_on": on, "rope_axis": "width"} for on in ("qkv", "v")),
    *(
        {"rope_input": kind, "rope_input_axis": axis, "rope_on": on}
        for kind in ("x", "normed", "before_norm")
        for axis in ("width", "head")
        for on in ("", "qk")
    ),
]

EXCHANGED = ("cos and sin exchanged in the first", "cos and sin exchanged in the second")
OVERWRITTEN = ("the first overwritten", "the second overwritten")
TWICE = ("cos in place of sin", "sin in place of cos")

SCORES: list[Switch] = [
    *({"rope_on": on} for on in ("", "q", "k")),
    {"rope_axis": "width"},
    {"mixed": True},
    {"tiled_of": "v"},  # of values that are tiled, as the first step found
    {"tiled": True, "tiled_of": "k"},
    *({"rope_input": "qk", "rope_input_axis": axis, "rope_on": on} for axis in ("width", "head") for on in ("", "qk")),
    *({"frequency": name} for name in FREQUENCIES if name != "standard"),
    *({"tables": tables} for tables in TABLES),
    *({role: shift} for role in ("query_shift", "key_shift") for shift in SHIFTS if shift != "no"),
    *({"query_shift": shift, "key_shift": shift} for shift in SHIFTS if " or " in shift or "first" in shift),
    *(
        {"split": split, "split_of": roles}
        for split in ("flat", "dims_first", "flat_dims")
        for roles in ("q", "k", "qk")
    ),
    {"split": "never"},
    {"split": "never", "scale": "1/sqrt(d_model / num_heads)"},
    *({"turn": turn} for turn in ("both sines with one sign", *EXCHANGED, *OVERWRITTEN, *TWICE)),
    *({"scale": scale} for scale in SCALES if scale not in ("1/sqrt(head_dim)", "1/sqrt(d_model / num_heads)")),
    {"softmax": "queries"},
    {"softmax": "queries, with the largest of the keys"},
    {"softmax": "heads"},
    {"mask": "causal", "fill_by": "multiplying"},
]


def in_pairs(switches: list[Switch]) -> list[Switch]:
    """Those that are tried beside another fault, too: in pairs the others would take too long."""
    rare = [RARE & {value for value in one.values() if isinstance(value, str)} or "tiled_of" in one for one in switches]
    return [one for one, is_rare in zip(switches, rare, strict=True) if not is_rare]


ONE_SIDED: list[Switch] = [
    # Of keys, these are what they are of queries with the other direction.
    *({"turn": turn, "turn_of": "q"} for turn in ("the other way", "cos and sin exchanged")),
    *(
        {"turn": turn, "turn_of": role}
        for role in "qk"
        for turn in ("both sines with one sign", *EXCHANGED, *OVERWRITTEN, *TWICE)
    ),
]
"""Of the scores too: queries and keys are turned in different ways."""
