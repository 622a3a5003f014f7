"""A verdict as text for a terminal."""

import io
import unicodedata
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..source.parse import split
from ..verdict import FAILED, NOT_APPLICABLE, PASSED, Finding, Place, Verdict

MARKS = {PASSED: ("ok", "green"), FAILED: ("wrong", "bold red"), NOT_APPLICABLE: ("-", "dim")}
MAX_SHOWN = 2000  # characters of any one text
CONTEXT = 1  # lines of the source on either side of the place


def print_verdict(verdict: Verdict, console: Console, source: str | None = None) -> None:
    """Print what was checked, the conventions, and every finding with its place and its fix.

    source: the learner's file, to show the neighbouring lines of a place too. Markup in any text has no effect, and
    no control character reaches the terminal.
    """
    console.print(Text.assemble("prenorm check ", (clean(verdict.subject), "bold")))
    for name, line in (("built as", verdict.build), ("called as", verdict.call)):
        if line:
            console.print(Text(f"{name}  {_line(line)}", style="dim"))
    console.print(_checks(verdict))
    if verdict.conventions:
        console.print(_conventions(verdict.conventions))
    for line in verdict.confinement:
        console.print(Text(clean(line), style="dim"))
    for finding in verdict.findings:
        console.print()
        for text in _finding(finding, source):
            console.print(text)
    console.print()
    console.print(summary(verdict))


def written(verdict: Verdict) -> str:
    """The same as plain text."""
    text = io.StringIO()
    print_verdict(verdict, Console(file=text, width=120, color_system=None, highlight=False))
    return text.getvalue().rstrip()


def clean(text: object) -> str:
    """Text that is safe in a terminal: control and bidirectional characters become spaces, newlines stay."""
    shown = str(text)[:MAX_SHOWN].replace("\r\n", "\n")
    return "".join(" " if one != "\n" and unicodedata.category(one) in _OBEYED else one for one in shown)


# Control, format (right-to-left marks and their like), surrogate, line and paragraph separators.
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _line(text: object) -> str:
    return " ".join(clean(text).split())


def _checks(verdict: Verdict) -> Table:
    table = Table("", "checked", "why", box=None, pad_edge=False, header_style="dim")
    for check in verdict.checks:
        mark, style = MARKS.get(check.result, (check.result, ""))
        table.add_row(Text(_line(mark), style=style), Text(_line(check.name)), Text(_line(check.reason), style="dim"))
    return table


def _conventions(conventions: dict[str, Any]) -> Table:
    table = Table("convention", "yours", box=None, pad_edge=False, header_style="dim")
    for name, value in conventions.items():
        table.add_row(Text(_line(name).replace("_", " ")), Text(_line(in_words(name, value))))
    return table


def in_words(name: str, value: Any) -> str:
    """A value in words: yes and no, none, a list with commas."""
    if name == "rope_direction" and value in (1, -1):
        return f"by {'plus' if value == 1 else 'minus'} the angle"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _finding(finding: Finding, source: str | None) -> Iterator[Text | Table]:
    shown = (_line(finding.id), "bold red" if finding.counts else "bold yellow")
    aside = "" if finding.counts else "  (does not count as a fault)"
    yield Text.assemble(shown, "  ", _line(finding.message), (aside, "dim"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("  shown by", Text(clean(finding.evidence).strip()))
    if (place := finding.place) is not None:
        table.add_row("  likely at", Text(f"{_line(place.file)}:{place.line}", style="cyan"))
        for number, code in _code(place, source):
            here = number == place.line
            table.add_row(f"{'>' if here else ' '} {number}".rjust(11), Text(code, style="bold" if here else "dim"))
    table.add_row("  fix", Text(clean(finding.mend).strip()))
    yield table


def _code(place: Place, source: str | None) -> Iterator[tuple[int, str]]:
    """The line, with its neighbours if the source is the one that was judged."""
    lines = split(source) if source is not None else []
    if not 1 <= place.line <= len(lines) or not lines[place.line - 1].strip().startswith(place.code):
        yield place.line, _line(place.code)
        return
    for number in range(max(1, place.line - CONTEXT), min(len(lines), place.line + CONTEXT) + 1):
        yield number, clean(lines[number - 1].expandtabs(4)).replace("\n", " ").rstrip()


def summary(verdict: Verdict) -> Text:
    """A line that says whether it has faults, and which."""
    skipped = [_line(check.name) for check in verdict.checks if check.result == NOT_APPLICABLE]
    left_out = f"; not applicable: {', '.join(skipped)}" if skipped else ""
    looked_at = len(verdict.checks) - len(skipped)
    if verdict.passed:
        return Text.assemble(("no fault found", "bold green"), f" in {looked_at} checks{left_out}")
    number = len(verdict.faults)
    if not number:
        return Text.assemble(("could not be judged", "bold yellow"), left_out)
    found = f"{number} fault{'s' if number > 1 else ''} found"
    return Text.assemble((found, "bold red"), f": {', '.join(_line(one.id) for one in verdict.faults)}{left_out}")
