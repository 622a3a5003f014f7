"""loss.png: the losses of a run over its steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.files import write_atomically
from .data.corpus import Say
from .metrics import Record

MOST_SMOOTHED = 20  # steps that the running mean looks back over; a tenth of a shorter run


def draw_losses(records: list[Record], path: Path, say: Say) -> None:
    """Write a picture of the training loss, as it is and smoothed, and of the held-out bits per byte.

    The held-out points are of one text: the part that is looked at during the run, or all of it where that never was.
    Without matplotlib, says so and does nothing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        say("There is no loss.png, because matplotlib is not installed: pip install 'prenorm[plot]'.")
        return

    steps = [(record["step"], record["loss"]) for record in records if "loss" in record]
    scored = [record for record in records if "eval_loss" in record]
    scored = [record for record in scored if "all_text" not in record] or scored[-1:]
    evaluations = [(record["step"], record["eval_bits_per_byte"]) for record in scored]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if steps:
        line(axes, steps, color="tab:blue", alpha=0.25, linewidth=0.8, label="training loss")
        line(axes, smoothed(steps), color="tab:blue", label="training loss, smoothed")
    label_steps(axes, "optimiser step")
    axes.set_ylabel("training loss (nats per token)", color="tab:blue")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    if evaluations:
        right.plot(*zip(*evaluations, strict=True), color="tab:red", marker="o", markersize=3, label="held-out text")
    right.set_ylabel("held-out text (bits per byte)", color="tab:red")
    if records:
        figure.legend(loc="upper right", bbox_to_anchor=(1, 1), bbox_transform=axes.transAxes)
    write_atomically(path, FigureCanvasAgg(figure).print_png)


def line(axes: Any, points: Sequence[tuple[int, float]], **options: Any) -> None:
    """A line on matplotlib's axes; a point where there is only one, which has no line."""
    axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else "", markersize=4, **options)


def label_steps(axes: Any, label: str) -> None:
    """Steps from left to right, none between two of them."""
    axes.set_xlabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)


def smoothed(steps: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """A running mean that is not drawn towards its start: Adam's bias correction."""
    smoothed, mean, weight = [], 0.0, 0.0
    decay = 1 - 1 / max(1, min(MOST_SMOOTHED, len(steps) / 10))
    for step, loss in steps:
        mean = decay * mean + (1 - decay) * loss
        weight = decay * weight + (1 - decay)
        smoothed.append((step, mean / weight))
    return smoothed
