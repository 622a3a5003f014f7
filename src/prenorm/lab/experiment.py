"""An experiment: what it measures, what it says of it, and how it runs in a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folder import Cells, open_folder
from .progress import shown_progress
from .report import Report, write_report
from .sweep import Plan, sweep
from .text import python_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Cells that may be measured side by side, cells whose time counts, which run alone, and the report on both."""

    name: str
    plan: Callable[[Cells], Plan]
    report: Callable[[Cells], Report]
    timed: Callable[[Cells], Plan] | None = None
    reads_text: bool = True


def run_experiment(experiment: Experiment, folder: Path, *, workers: int) -> dict[str, Any]:
    """Measure what is missing in the folder, write the report there, and give what its JSON file says.

    Raises ConfigError, CheckpointError, and what `sweep` raises.
    """
    text = python_text().digest if experiment.reads_text else None
    with open_folder(folder, experiment.name, text=text) as cells:
        with shown_progress(experiment.name) as progress:
            sweep(lambda: experiment.plan(cells), cells, workers=workers, progress=progress)
        if experiment.timed is not None:
            timed = experiment.timed
            with shown_progress(f"{experiment.name}, times") as progress:
                sweep(lambda: timed(cells), cells, workers=1, progress=progress)
        return write_report(experiment.report(cells), folder)
