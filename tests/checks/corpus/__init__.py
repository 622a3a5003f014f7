"""Blocks that somebody else might have written, right and faulty ones, as source text: what `check` is measured by.

A block is built with (d_model, num_heads, d_ff) and takes x (..., seq, d_model) with any leading dims, token_positions
(seq,) or (batch, seq) where it has them, and a boolean mask, True = may attend, where it has one. Low precision is
asked for by the constructor's dtype. Without a target these are free: pairing and direction of the rotation, causality,
the order of grouped heads, the norm's cast order, the default of eps, biases, norms of queries and keys.
The targets: "prenorm" is this package's TransformerBlock as it comes (neighbouring features are paired, positive
direction, not causal, no bias); "llama" is Hugging Face's Llama (halves are paired, positive direction, causal,
key-value heads repeated, no bias).
"""

from functools import cache

from . import combinations, real
from .editing import Example, Made
from .styles import STYLES

__all__ = ["Example", "faulty", "original", "right", "without"]


def faulty() -> list[Example]:
    """Every block that has a fault, or two."""
    return [made.example for made in _made()]


def right() -> list[Example]:
    """Every block that has none."""
    return [example for style in STYLES for example in style.RIGHT] + real.RIGHT


def original(example: Example) -> Example:
    """The right block that a faulty one was made from."""
    return _by_name()[example.name].original


def without(example: Example, fault: str) -> Example:
    """The block that lacks this one of its faults: the right one, or the one with the other fault alone."""
    return _by_name()[example.name].without(fault)


@cache
def _made() -> tuple[Made, ...]:
    return tuple([made for style in STYLES for made in style.FAULTY] + combinations.FAULTY)


@cache
def _by_name() -> dict[str, Made]:
    return {made.example.name: made for made in _made()}
