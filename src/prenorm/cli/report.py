"""`prenorm report RUN ...`: one page about a run, or about several side by side."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import ConfigError
from .flags import flags_from


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFlags:
    """Write one HTML page about runs: losses, learning rate, speed, settings, samples, checkpoints, data.

    The page needs no other file and no network. A run that is still training is reported as far as it is.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of runs. Several are drawn side by side."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write the page. Without it, report.html in the folder of the first run."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON document with the file, and what each run has reached."""


def parse(argv: list[str]) -> ReportFlags:
    """The flags in a command line. Exits with a message when they are none."""
    flags: ReportFlags = flags_from(ReportFlags, argv, prog="prenorm report")
    return flags


def run(flags: ReportFlags) -> int:
    """Write the page, and say where. Gives the exit code."""
    from ..checkpoint.files import write_atomically  # these load torch, which --help should not wait for
    from ..training.report.record import read_run
    from ..training.report.run_page import run_page

    if not flags.runs:
        raise ConfigError("report needs the folder of a run, such as: prenorm report runs/demo")
    runs = [read_run(folder) for folder in flags.runs]
    path = flags.out or flags.runs[0] / "report.html"
    write_atomically(path, run_page(runs).encode("utf-8"))
    if flags.json:
        reached = [
            {
                "run": one.name,
                "steps": one.newest_step,
                "finished": one.result is not None,
                "eval_loss": (one.final or {}).get("eval_loss"),
            }
            for one in runs
        ]
        print(json.dumps({"report": str(path), "runs": reached}, indent=2))
    else:
        print(f"The report is in {path}.")
    return 0
