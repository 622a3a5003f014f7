"""Verdicts as HTML, without scripts: a table for a notebook, and a page with a row for each submission."""

import html
from collections.abc import Sequence

from ..verdict import FAILED, Finding, Verdict
from .result import Result, frequencies, shared_reasons, totals
from .text import clean, in_words, summary

TABLE = """
.prenorm-check table{border-collapse:collapse;width:100%}
.prenorm-check td,.prenorm-check th{border-bottom:1px solid #d8dee6;padding:.4rem .6rem;text-align:left;
vertical-align:top}
.prenorm-check td,.prenorm-check p{overflow-wrap:anywhere}.prenorm-check td:first-child{min-width:9rem}
.prenorm-check th,.prenorm-check .aside{color:#5a6675;font-weight:400}
.prenorm-check code{font:13px/1.4 ui-monospace,monospace;white-space:pre-wrap}
.prenorm-check .passed{color:#14713d}.prenorm-check .failed{color:#b3261e}.prenorm-check .problem{color:#8a5a00}
.prenorm-check summary{cursor:pointer}
"""
PAGE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;padding:0 2rem;max-width:90rem;color:#1d2530}
h1{overflow-wrap:anywhere}
table{margin-bottom:1rem}
td.name{width:16rem}td.outcome{white-space:nowrap;overflow-wrap:normal}
"""


def as_table(verdict: Verdict) -> str:
    """One verdict, for a notebook."""
    outcome = "passed" if verdict.passed else "failed" if verdict.faults else "problem"
    said = f'<p class="{outcome}"><b>{_text(summary(verdict).plain)}</b></p>'
    return f'<div class="prenorm-check"><style>{TABLE}</style>{said}{_verdict(verdict)}</div>'


def as_page(results: Sequence[Result], title: str, about: str = "") -> str:
    """A page: how many passed, the frequency of each fault, and a row for each submission, whose findings unfold.

    about: how and when they were judged.
    """
    groups = _group("fault", frequencies(results)) + _group("what stopped several", shared_reasons(results))
    said = f'<p><b>{totals(results)}</b><br><span class="aside">{_text(about)}</span></p>'
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{TABLE}{PAGE}</style>'
    return (
        f'<!doctype html><html lang="en">{head}<body class="prenorm-check"><h1>{_text(title)}</h1>{said}{groups}'
        "<h2>Submissions</h2><table><tr><th>submission</th><th>outcome</th><th>what was found</th></tr>"
        f"{''.join(map(_row, results))}</table></body></html>\n"
    )


def _group(what: str, whose: Sequence[tuple[str, Sequence[str]]]) -> str:
    rows = "".join(
        f"<tr><td>{_code(name)}</td><td>{len(names)}</td><td>{_text(', '.join(names))}</td></tr>"
        for name, names in whose
    )
    return f"<table><tr><th>{what}</th><th>how many</th><th>whose</th></tr>{rows}</table>" if rows else ""


def _row(one: Result) -> str:
    what = _text(one.problem) if one.verdict is None else ""
    if one.verdict is not None:
        said = _text(", ".join(one.faults) or one.stopped_by or "no fault")
        if one.others and one.outcome != "problem":
            said += f' <span class="aside">(not counted: {_text(", ".join(one.others))})</span>'
        what = f"<details><summary>{said}</summary>{_verdict(one.verdict)}</details>"
    what += f'<div class="aside">{_text(one.note)}</div>' if one.note else ""
    name = f'<td class="name">{_text(one.name)}</td>'
    return f'<tr>{name}<td class="outcome {one.outcome}">{one.outcome}</td><td>{what}</td></tr>'


def _verdict(verdict: Verdict) -> str:
    lines = "".join(
        f"<tr><td>{name}</td><td>{_code(value)}</td></tr>"
        for name, value in (("built as", verdict.build), ("called as", verdict.call))
        if value
    )
    conventions = "; ".join(
        f"{name.replace('_', ' ')}: {in_words(name, value)}" for name, value in verdict.conventions.items()
    )
    failed = ", ".join(one.name for one in verdict.checks if one.result == FAILED)
    parts = [
        f"<table>{lines}",
        f"<tr><td>conventions</td><td>{_text(conventions)}</td></tr>" if conventions else "",
        f"<tr><td>failed</td><td>{_text(failed)}</td></tr>" if failed else "",
        *(_finding(one, verdict) for one in verdict.findings),
        "</table>",
    ]
    return "".join(parts)


def _finding(finding: Finding, verdict: Verdict) -> str:
    place = finding.place
    where = "" if place is None else f"<br>{_text(f'{place.file}:{place.line}')} {_code(place.code)}"
    mend = "fix" if finding.counts or not verdict.judged else "to change it"
    said = f"{_text(finding.message)}<br>{_text(finding.evidence)}{where}<br>{mend}: {_text(finding.mend)}"
    aside = "" if finding.counts else '<div class="aside">does not count as a fault</div>'
    kind = "failed" if finding.counts else "aside" if verdict.judged else "problem"
    return f'<tr><td class="{kind}">{_code(finding.id)}{aside}</td><td>{said}</td></tr>'


def _text(text: object) -> str:
    return html.escape(clean(text))


def _code(text: object) -> str:
    return f"<code>{_text(text)}</code>"
