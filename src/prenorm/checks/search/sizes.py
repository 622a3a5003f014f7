"""The sizes that a learner's block actually has: the feed-forward's width, and the key-value heads."""

import dataclasses
import itertools
from dataclasses import dataclass

from ..formula.assign_attention import attention_readings, beyond_four
from ..formula.assign_feed_forward import feed_forward_readings
from ..formula.parameters import GATE, Parameters, Sizes, possible_d_ff, sort_parameters
from ..subject.learner import Built

MOST = 6
"""Matrices of one sublayer that are assigned: a block has four and three, and others have experts or memories."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Sizes, and the parameters sorted by them."""

    sizes: Sizes
    found: Parameters

    @property
    def unknown(self) -> tuple[str, ...]:
        """Parameters without the shape of a weight, such as adapters and tables."""
        return tuple(self.found.unknown)

    @property
    def beyond(self) -> tuple[str, ...]:
        """Projections that are more than a block has."""
        first = next(attention_readings(self.found, self.sizes), {})
        return first[GATE].parameters if GATE in first else tuple(beyond_four(self.found.attention))

    @property
    def uncertain(self) -> tuple[str, ...]:
        """Weights kept in parts other than heads, whose order is unknown."""
        by_head = (self.sizes.num_heads, self.sizes.num_kv_heads)
        return tuple(name for name, parts in self.found.parts.items() if len(parts) not in by_head)


def fitting_sizes(built: Built) -> list[Fit]:
    """The sizes, with the number of key-value heads that the parameters have.

    Two of them where a block with the heads that were asked for would lack a weight, and one with fewer would not.
    """
    listed = [*built.parameters, *built.plain_weights]
    possible = []
    for d_ff, heads in itertools.product(possible_d_ff(listed, built.sizes), (built.sizes.num_kv_heads, 2, 1)):
        sizes = dataclasses.replace(built.sizes, num_kv_heads=heads, d_ff=d_ff)
        found = sort_parameters(listed, sizes)
        first, inner = next(attention_readings(found, sizes), None), next(feed_forward_readings(found, sizes), None)
        if first is not None and inner is not None:
            lacking = ("o" not in first) + ("gate" not in inner)
            possible.append((heads != built.sizes.num_kv_heads, lacking, Fit(sizes, found)))
    if not possible:
        return [Fit(built.sizes, sort_parameters(listed, built.sizes))]
    best = min(possible, key=lambda one: one[:2])
    wholer = [one for one in possible if one[1] < best[1]]
    return [best[2], *(one[2] for one in sorted(wholer, key=lambda one: one[1])[:1])]
