"""The results of a batch as tables: for a terminal, and for spreadsheets."""

import csv
import io
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .result import Result, frequencies, shared_reasons, totals
from .text import clean

WIDTH = 120  # characters of a line in a file


def as_table(results: Sequence[Result]) -> str:
    """The table as plain text."""
    text = io.StringIO()
    print_table(results, Console(file=text, width=WIDTH, color_system=None))
    return text.getvalue()


def print_table(results: Sequence[Result], console: Console) -> None:
    """A row for each submission, and below it the frequency of each fault."""
    whole = [Column(name, overflow="fold") for name in ("submission", "outcome", "faults", "seconds")]
    table = Table(*whole)  # a name that is cut could be anybody's
    for one in results:
        faults = ", ".join(one.faults)
        if one.stopped_by:
            faults = f"{faults} ({one.stopped_by})" if faults else one.stopped_by
        if one.note:
            faults = f"{faults} [{one.note}]" if faults else f"[{one.note}]"
        table.add_row(escape(clean(one.name)), one.outcome, escape(clean(faults)), f"{one.seconds:.1f}")
    console.print(table)
    console.print(totals(results))
    if counts := [f"{name} {len(names)}" for name, names in frequencies(results)]:
        console.print("faults: " + ", ".join(counts))
    if borrowed := [one.name for one in results if one.verdict and "from_prenorm" in one.verdict.conventions]:
        console.print(escape(clean(f"with prenorm's own classes: {', '.join(borrowed)}")))
    for reason, names in shared_reasons(results):
        console.print(escape(clean(f"stopped {len(names)}: {reason} ({', '.join(names)})")))


FOUND = ("faults", "does not count", "problem", "note", "evidence", "where")
COLUMNS = ("name", "outcome", *FOUND, "built as", "called as", "seconds")


def to_csv(results: Sequence[Result]) -> str:
    """A table for spreadsheets: a row for each submission, with what was found, how it was built, and seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in results:
        build, call, faults = (one.verdict.build, one.verdict.call, one.verdict.faults) if one.verdict else ("", "", ())
        evidence = "\n".join(f"{fault.id}: {fault.evidence}" for fault in faults)
        places = [f"{fault.place.file}:{fault.place.line}" for fault in faults if fault.place]
        found = (" ".join(one.faults), " ".join(one.others), one.stopped_by, one.note, evidence, "\n".join(places))
        writer.writerow([*map(_cell, (one.name, one.outcome, *found, build, call)), f"{one.seconds:.1f}"])
    return text.getvalue()


def _cell(text: str) -> str:
    """A cell that no spreadsheet interprets as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
