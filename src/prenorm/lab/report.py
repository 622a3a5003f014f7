"""What an experiment leaves: CSV, JSON, a PNG a picture, and one HTML page with all of it and what it means."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.files import json_content, write_together
from ..page import Part, Section, Table, page, picture
from .folder import environment
from .intervals import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture that is to be drawn: on matplotlib's axes, or an array of them where `panels` is not (1, 1)."""

    name: str
    draw: Callable[[Any], None]
    alt: str
    size: tuple[float, float] = (8.0, 4.5)
    panels: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One question: what was found, in words; claims beside measurements; a picture and the figures behind it."""

    title: str
    text: Sequence[str]
    table: Table
    findings: Sequence[Finding] = ()
    drawing: Drawing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An experiment's chapters, and every number behind them: `data` has a table for each CSV file, by its name."""

    name: str
    title: str
    introduction: Sequence[str]
    chapters: Sequence[Chapter]
    data: Mapping[str, Table] = field(default_factory=dict)


def write_report(report: Report, folder: Path) -> dict[str, Any]:
    """Write all files, and give what the JSON file says. Raises ConfigError where matplotlib is not installed."""
    pictures = {
        one.drawing.name: picture(
            one.drawing.draw, alt=one.drawing.alt, size=one.drawing.size, panels=one.drawing.panels
        )
        for one in report.chapters
        if one.drawing is not None
    }
    sections = []
    for chapter in report.chapters:
        parts: list[Part] = [*chapter.text, *map(_sentence, chapter.findings)]
        parts += [pictures[chapter.drawing.name]] if chapter.drawing else []
        sections.append(Section(chapter.title, [*parts, chapter.table]))
    summary = [Section("Claims, and what was measured here", [_verdicts(report)])] if _findings(report) else []
    html = page(report.title, [*summary, *sections], introduction=[*report.introduction, _conditions()])
    record = _record(report)
    contents = {folder / f"{name}.csv": as_csv(table) for name, table in report.data.items()}
    contents |= {folder / f"{name}.png": drawn.png for name, drawn in pictures.items()}
    contents[folder / f"{report.name}.json"] = json_content(record)
    contents[folder / f"{report.name}.html"] = html.encode()
    write_together(contents)
    return record


def _findings(report: Report) -> list[Finding]:
    return [finding for chapter in report.chapters for finding in chapter.findings]


def _verdicts(report: Report) -> Table:
    rows = [(one.claim.text, one.claim.range, _measured(one), one.verdict) for one in _findings(report)]
    caption = (
        "Measured: the mean over seeds and its 95 % interval (Student's t). Agrees: all of it is in the claim's range."
    )
    return Table(("claim", "as a number", "measured", "verdict"), rows, caption)


def _measured(finding: Finding) -> str:
    return "no number came out" if finding.measured is None else str(finding.measured)


def _sentence(finding: Finding) -> str:
    claim = finding.claim
    return (
        f"Claim: {claim.text} ({claim.source}). As a number: {claim.range}. Measured: {_measured(finding)}. "
        f"Verdict: {finding.verdict}."
    )


def _conditions() -> str:
    has = environment()
    return (
        f"Measured with prenorm {has['prenorm']}, torch {has['torch']}, Python {has['python']}, on {has['system']} "
        f"({has['instructions']}), one thread each. The same command with the same seed and versions gives the same "
        "numbers, times excepted."
    )


def _record(report: Report) -> dict[str, Any]:
    return {
        "experiment": report.name,
        "title": report.title,
        "environment": environment(),
        "findings": [
            {
                "chapter": chapter.title,
                "claim": one.claim.text,
                "source": one.claim.source,
                "claimed": [_finite(one.claim.low), _finite(one.claim.high)],
                "measured": _finite(one.measured.mean) if one.measured else None,
                "interval": [_finite(one.measured.low), _finite(one.measured.high)] if one.measured else None,
                "seeds": one.measured.seeds if one.measured else 0,
                "verdict": one.verdict,
            }
            for chapter in report.chapters
            for one in chapter.findings
        ],
        "chapters": [
            {
                "title": chapter.title,
                "text": list(chapter.text),
                "picture": f"{chapter.drawing.name}.png" if chapter.drawing else None,
                "columns": list(chapter.table.columns),
                "rows": [[_finite(cell) for cell in row] for row in chapter.table.rows],
            }
            for chapter in report.chapters
        ],
    }


def _finite(cell: Any) -> Any:
    """A cell as JSON has it: null for what is not finite."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def as_csv(table: Table) -> bytes:
    """A file of the table's cells; None is an empty one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return text.getvalue().encode()
