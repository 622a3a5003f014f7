"""Lines of variants in the same colours everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import Numbers
from .variants import VARIANTS

Line = tuple[Numbers, Sequence[int | float | None]]
MARKERS = "osD^v<>P"
MOST_MARKERS = 16  # on a line; more would hide it


def draw_lines(axes: Any, lines: Mapping[str, Line], **labels: Any) -> None:
    """A line for each name; what is None is left out. labels: title, xlabel, ylabel, xscale, yscale."""
    for i, (name, (x, y)) in enumerate(lines.items()):
        place = list(VARIANTS).index(name) if name in VARIANTS else i
        points = [(one, value) for one, value in zip(x, y, strict=True) if value is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=f"C{place}",
                marker=MARKERS[place % len(MARKERS)] if len(points) <= MOST_MARKERS else None,
                markersize=4,
                label=name,
            )
    axes.set(**labels)


def within(axes: Any, limits: tuple[float, float]) -> None:
    """Show no more of the y axis than this."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, limits[0]), min(high, limits[1]))


def draw_bars(axes: Any, name: str, x: Numbers, means: Numbers, halves: Numbers) -> None:
    """A line with the half-width of an interval above and below each point."""
    place = list(VARIANTS).index(name) if name in VARIANTS else 0
    axes.errorbar(x, means, halves, color=f"C{place}", marker=MARKERS[place], markersize=4, capsize=3, label=name)
