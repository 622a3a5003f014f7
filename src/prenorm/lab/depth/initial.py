"""The measurements of untrained models, put together over seeds, depths and layers."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ...page import Table
from ..folder import Cells, Record
from ..intervals import exponent, interval
from ..variants import VARIANTS
from .initialisation import InitialCell
from .plan import Scale, initial_cells

Of = Callable[[Record], float | None]
OfLayers = Callable[[Record], Sequence[float | None]]


class Initial:
    """The measurements of untrained models, by variant, start, depth and seed."""

    def __init__(self, scale: Scale, cells: Cells) -> None:
        self.scale, self.cells = scale, cells
        self.deepest = max(scale.initial_depths)

    def one(self, variant: str, start: str, depth: int, seed: int) -> Record:
        cell = InitialCell(variant=variant, start=start, depth=depth, seed=seed, sizes=self.scale.sizes)
        return self.cells.get(cell) or {}

    def mean(self, variant: str, start: str, depth: int, of: Of) -> float | None:
        """The geometric mean over seeds; None where one of them has no number."""
        values = [of(self.one(variant, start, depth, seed)) for seed in self.scale.seeds]
        return statistics.geometric_mean([one for one in values if one]) if all(values) else None

    def exponent(self, variant: str, start: str, of: Of) -> Any:
        """How it grows with depth, b in depth^b: over seeds; None where some model has no number."""
        depths = self.scale.initial_depths
        found = [
            exponent(depths, [of(self.one(variant, start, depth, seed)) for depth in depths])
            for seed in self.scale.seeds
        ]
        return None if None in found else interval([one for one in found if one is not None])

    def over_layers(self, variant: str, start: str, of: OfLayers, statistic: Callable[..., float]) -> Any:
        """A statistic of (layers, values) in the deepest model, over seeds; None where one is not finite."""
        found = []
        for seed in self.scale.seeds:
            values = of(self.one(variant, start, self.deepest, seed))
            if None in values:
                return None
            found.append(statistic(range(len(values)), values))
        return interval(found) if all(map(math.isfinite, found)) else None

    def lines(self, start: str, of: Of) -> dict[str, Any]:
        """Over depth, for each variant."""
        depths = self.scale.initial_depths
        return {variant: (depths, [self.mean(variant, start, depth, of) for depth in depths]) for variant in VARIANTS}

    def layer_lines(self, start: str, name: str) -> dict[str, Any]:
        """Over the layers of the deepest model, for each variant, with the first seed."""
        found = {variant: self.one(variant, start, self.deepest, self.scale.seeds[0])[name] for variant in VARIANTS}
        return {variant: (range(len(values)), [one or None for one in values]) for variant, values in found.items()}


def initial_data(scale: Scale, cells: Cells) -> Table:
    """Every norm of every untrained model, a row a layer: layer 0 is the embedding."""
    rows = []
    for cell in initial_cells(scale):
        record = cells.get(cell) or {}
        for layer, (activation, gradient) in enumerate(
            zip(record["activation"], record["activation_gradient"], strict=True)
        ):
            weights = (record["weight_gradient"][layer - 1], record["last_ffn_gradient"][layer - 1])
            rows.append(
                (
                    *(cell.variant, cell.start, cell.depth, cell.seed, layer, activation, gradient),
                    *(weights if layer else (None, None)),
                    record["update"],
                )
            )
    columns = ("variant", "start", "depth", "seed", "layer", "activation_rms", "activation_gradient_norm")
    return Table((*columns, "weight_gradient_norm", "last_ffn_gradient_norm", "update_per_rate"), rows)
