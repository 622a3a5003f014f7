"""One page about one run, or about several side by side: losses, rates, speed, settings, samples, checkpoints, data."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from ...page import Part, Picture, Raw, Section, Table, escaped, page, picture
from ..metrics import Record
from ..picture import label_steps, line, smoothed
from .record import RunRecord

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
SHOWN_SAMPLES = 12  # of a run: the first, the last, and some between

Draw = Callable[[Any, RunRecord, str], None]


def run_page(runs: Sequence[RunRecord]) -> str:
    """The page as HTML that needs no other file. Raises ConfigError where matplotlib is not installed."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    sections = [
        Section("What was reached", [_reached(runs)]),
        Section("Loss", list(_losses(runs))),
        Section("Learning rate and gradient", list(_rates(runs))),
        Section("Speed", list(_speed(runs))),
        *(_left_out(runs)),
        Section("Settings", list(_settings(runs))),
        Section("Samples", list(_samples(runs))),
        Section("Checkpoints", [_checkpoints(runs)]),
        Section("Data", list(_data(runs))),
    ]
    made = " ".join(run.name for run in runs)
    return page(f"prenorm: {title}", sections, introduction=[f"Made by `prenorm report {made}` from what is in there."])


def _reached(runs: Sequence[RunRecord]) -> Table:
    """A column a run."""
    columns = [_figures(run) for run in runs]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    rows = [row for row in rows if any(cell is not None for cell in row[1:])]
    return Table(("", *(run.name for run in runs)), rows, "Losses are in nats per token.")


def _figures(run: RunRecord) -> dict[str, object]:
    """What a run has reached, as it is told."""
    result, last = run.result or {}, run.newest_step
    scored: Record = run.final or (run.evaluations[-1] if run.evaluations else {})
    of = "all held-out text" if run.final else f"the part that is looked at, step {scored.get('step', 0):,}"
    return {
        "steps": f"{last:,} of {run.settings.get('steps', '?')}" + ("" if run.result else ", not finished"),
        "parameters": result.get("parameters"),
        "weights of step": result.get("weights_of_step") or (last if run.result else None),
        "last training loss": run.steps[-1]["loss"] if run.steps else None,
        "held-out loss": scored.get("eval_loss"),
        "held-out bits per byte": scored.get("eval_bits_per_byte"),
        "the same, averaged weights": scored.get("ema_eval_bits_per_byte"),
        "held-out figures are of": of if scored else None,
        "xz -9, bits per byte": result.get("xz_bits_per_byte"),
        "seconds of training": result.get("training_seconds"),
    }


def _losses(runs: Sequence[RunRecord]) -> Iterator[Part]:
    def draw(axes: Any, run: RunRecord, colour: str) -> None:
        label = f"{_in_legend(run)}: " if len(runs) > 1 else ""
        steps = [(record["step"], record["loss"]) for record in run.steps]
        if steps:
            raw = {} if label else {"label": "training"}
            line(axes, steps, color=colour, alpha=0.45, linewidth=0.8, **raw)
            line(axes, smoothed(steps), color=colour, label=f"{label}training, smoothed")
        for name, style, what in (
            ("eval_loss", "o-", "held-out"),
            ("ema_eval_loss", "x--", "held-out, averaged weights"),
        ):
            points = [(record["step"], record[name]) for record in run.evaluations if name in record]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, color=_darker(colour), markersize=4, label=f"{label}{what}"
                )

    if any(run.steps or run.evaluations for run in runs):
        yield _picture(
            runs, draw, "loss (nats per token)", alt=_told("The loss", runs, "loss"), caption="Both losses are in nats "
            "per token. Every held-out point of a run is of the same part of its held-out text."
        )  # fmt: skip
    else:
        yield "No step is finished yet."


def _rates(runs: Sequence[RunRecord]) -> Iterator[Part]:
    yield from _of_steps(runs, "lr", "learning rate", "The learning rate of the blocks' matrices.")
    yield from _of_steps(runs, "grad_norm", "norm of the gradient", "Before it is clipped.", log=True)
    yield from _of_steps(runs, "loss_scale", "loss scale", "By which float16's loss is multiplied.", log=True)


def _speed(runs: Sequence[RunRecord]) -> Iterator[Part]:
    yield from _of_steps(runs, "tokens_per_second", "tokens a second", "Evaluations and checkpoints are not counted.")
    yield from _of_steps(
        runs, "mfu_causal", "MFU", "The share of the rate of a large product, measured when the run began."
    )


def _of_steps(runs: Sequence[RunRecord], name: str, label: str, caption: str, *, log: bool = False) -> Iterator[Part]:
    """A picture of one number of each step, where any run has it."""
    if not any(name in record for run in runs for record in run.steps):
        return

    def draw(axes: Any, run: RunRecord, colour: str) -> None:
        points = [(record["step"], record[name]) for record in run.steps if name in record]
        if points:
            line(axes, points, color=colour, linewidth=0.9, label=_in_legend(run))
        if log:
            axes.set_yscale("log")

    yield _picture(runs, draw, label, alt=_told(label.capitalize(), runs, name), caption=caption, height=2.8)


def _picture(
    runs: Sequence[RunRecord], draw: Draw, label: str, *, alt: str, caption: str, height: float = 4.5
) -> Picture:
    def on(axes: Any) -> None:
        for run, colour in zip(runs, cycle(COLOURS), strict=False):
            draw(axes, run, colour)
        label_steps(axes, "step")
        axes.set_ylabel(label)
        if len(runs) > 1:  # too many to lie over the lines
            axes.figure.legend(loc="outside lower left", ncols=2)
        elif height > 4:
            axes.legend()

    return picture(on, alt=alt, caption=caption, size=(8.0, height + (len(runs) > 1) * 0.3 * len(runs)))


def _in_legend(run: RunRecord) -> str:
    """The name as matplotlib takes it: "$" would begin a formula, and "_" at the start hide the line."""
    name = run.name.replace("$", r"\$")
    return f"./{name}" if name.startswith("_") else name


def _darker(colour: str) -> Any:
    from matplotlib.colors import to_rgb

    return tuple(0.7 * part for part in to_rgb(colour))


def _told(what: str, runs: Sequence[RunRecord], name: str) -> str:
    """The picture in words: the first and the last value of each run."""
    told = []
    for run in runs:
        values = [record[name] for record in run.steps if name in record]
        if values:
            told.append(f"{run.name}: from {values[0]:.4g} to {values[-1]:.4g} in {len(values):,} steps")
    return f"{what}. {'; '.join(told)}."


def _left_out(runs: Sequence[RunRecord]) -> Iterator[Section]:
    """Steps that changed no weight, and batches that were written out; nothing where there were none."""
    rows = [(run.name, record["step"], record["skipped"]) for run in runs for record in run.skipped]
    parts: list[Part] = [Table(("run", "step", "why"), rows, "Steps that were left out.")] if rows else []
    files = [(run.name, name) for run in runs for name in run.kept]
    if files:
        parts.append(Table(("run", "file in its batches/"), files, "Batches with their documents, written out."))
    if parts:
        yield Section("Steps that were left out, and spikes", parts)


def _settings(runs: Sequence[RunRecord]) -> Iterator[Part]:
    names = sorted({name for run in runs for name in run.settings})
    rows = [(name, *(_shown(run.settings.get(name)) for run in runs)) for name in names]
    columns = ("setting", *(run.name for run in runs))
    if len(runs) > 1:
        differ = [row for row in rows if len(set(row[1:])) > 1]
        yield Table(columns, differ, "Those that differ.") if differ else "All settings are the same."
    yield Table(columns, rows, "All, as in config.toml. What is empty has its default there.")


def _shown(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _samples(runs: Sequence[RunRecord]) -> Iterator[Part]:
    found = False
    for run in runs:
        texts = [(f"step {one['step']:,}", one.get("prompt", ""), one.get("text", "")) for one in _some(run.samples)]
        if run.result and "sample" in run.result:
            texts.append(("at the end", run.result.get("prompt", ""), run.result["sample"]))
        for when, prompt, text in texts:
            found = True
            head = f"{run.name}, {when}" if len(runs) > 1 else when
            shown = f"<b>{escaped(prompt)}</b>{escaped(text)}"
            yield Raw(
                f"<figure><figcaption>{escaped(head)}</figcaption>"
                f'<pre style="white-space:pre-wrap;margin:.3rem 0">{shown}</pre></figure>'
            )
    if not found:
        yield "There are none yet: a run writes one at its end, and `--sample-every N` one every N steps."


def _some(samples: Sequence[Record]) -> list[Record]:
    """At most SHOWN_SAMPLES of them, evenly spread, the first and the last among them."""
    if len(samples) <= SHOWN_SAMPLES:
        return list(samples)
    return [samples[round(i * (len(samples) - 1) / (SHOWN_SAMPLES - 1))] for i in range(SHOWN_SAMPLES)]


def _checkpoints(runs: Sequence[RunRecord]) -> Part:
    rows = [(run.name, step, f"{size / 1e6:,.1f} MB") for run in runs for step, size in run.checkpoints]
    return Table(("run", "step", "on the disk"), rows) if rows else "There are none."


def _data(runs: Sequence[RunRecord]) -> Iterator[Part]:
    label = partial("{}: {}".format) if len(runs) > 1 else lambda _, sentence: sentence
    sentences = [label(run.name, sentence) for run in runs for sentence in run.data]
    yield from sentences or ["The run keeps no record of what was read."]
