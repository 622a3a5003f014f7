"""Verdicts as HTML, without scripts: a table for a notebook, and a page with a row for each submission."""

import html
from collections.abc import Sequence

from ..verdict import FAILED, Finding, Verdict
from .result import Result, groups
from .text import clean

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1d2530}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #d8dee6;padding:.4rem .6rem;text-align:left;vertical-align:top}
th{font-weight:600;color:#5a6675}
code,pre{font:13px/1.4 ui-monospace,monospace;white-space:pre-wrap;margin:0}
.passed{color:#14713d}.failed{color:#b3261e}.problem{color:#8a5a00}
.note{color:#5a6675}
summary{cursor:pointer}
"""


def as_table(verdict: Verdict) -> str:
    """One verdict, for a notebook."""
    return f'<div class="prenorm-check">{_verdict(verdict)}</div>'


def as_page(results: Sequence[Result], title: str) -> str:
    """A page: the frequency of each finding, and a row for each submission with its findings or what stopped it."""
    counted = "".join(
        f"<tr><td>{_code(name)}</td><td>{len(names)}</td><td>{_text(', '.join(names))}</td></tr>"
        for name, names in groups(results)
    )
    rows = "".join(_row(one) for one in results)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
        f"<h1>{_text(title)}</h1>"
        + (f"<table><tr><th>finding</th><th>how many</th><th>whose</th></tr>{counted}</table>" if counted else "")
        + "<h2>Submissions</h2><table><tr><th>submission</th><th>outcome</th><th>what was found</th></tr>"
        f"{rows}</table></html>\n"
    )


def _row(one: Result) -> str:
    what = _text(one.problem) if one.verdict is None else ""
    if one.verdict is not None:
        ids = ", ".join(one.faults) or one.stopped_by or "no fault"
        what = f"<details><summary>{_text(ids)}</summary>{_verdict(one.verdict)}</details>"
    what += f'<div class="note">{_text(one.note)}</div>' if one.note else ""
    return f'<tr><td>{_text(one.name)}</td><td class="{one.outcome}">{one.outcome}</td><td>{what}</td></tr>'


def _verdict(verdict: Verdict) -> str:
    lines = "".join(
        f"<tr><td>{name}</td><td>{_code(value)}</td></tr>"
        for name, value in (("built as", verdict.build), ("called as", verdict.call))
        if value
    )
    conventions = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in verdict.conventions.items())
    failed = ", ".join(one.name for one in verdict.checks if one.result == FAILED)
    parts = [
        f"<table>{lines}",
        f"<tr><td>conventions</td><td>{_text(conventions)}</td></tr>" if conventions else "",
        f"<tr><td>failed</td><td>{_text(failed)}</td></tr>" if failed else "",
        *map(_finding, verdict.findings),
        ""
        if verdict.findings
        else f'<tr><td class="passed">no fault found</td><td>{len(verdict.checks)} checks</td></tr>',
        "</table>",
    ]
    return "".join(parts)


def _finding(finding: Finding) -> str:
    place = finding.place
    where = "" if place is None else f"<br>{_text(f'{place.file}:{place.line}')} {_code(place.code)}"
    said = f"{_text(finding.message)}<br>{_text(finding.evidence)}{where}<br>fix: {_text(finding.mend)}"
    counts = "failed" if finding.counts else "counts-not"
    return f'<tr><td class="{counts}">{_code(finding.id)}</td><td>{said}</td></tr>'


def _text(text: object) -> str:
    return html.escape(clean(text))


def _code(text: object) -> str:
    return f"<code>{_text(text)}</code>"
