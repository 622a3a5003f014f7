"""A report as one HTML page that needs no other file and no network, in light and dark, on narrow screens and on paper.

    losses = picture(lambda axes: axes.plot(steps, losses), alt="The training loss falls from 5.5 to 2.1.")
    parts = ["It ran for 200 steps; `prenorm train` made it.", Table(("step", "loss"), rows), losses]
    text = page("A run", [Section("Losses", parts)])

A part is a string (a paragraph), a `Table`, a `Picture` or `Raw` HTML. In a paragraph `words in backticks` are code and
https:// addresses are links; everything else, in tables too, stands there as it was given.
"""

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import ConfigError

STYLE = """
:root{color-scheme:light dark;--ink:#1d2530;--dim:#5a6675;--line:#d8dee6;--back:#fff;--tint:#f3f5f8;--link:#0b57d0}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ee;--dim:#a3adba;--line:#3a4350;--back:#15191f;--tint:#20262e;
--link:#8ab4f8}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;margin:0 auto;padding:1.5rem 1rem 3rem;max-width:60rem;color:var(--ink);
background:var(--back);overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.25}h2{font-size:1.3rem;line-height:1.3;margin-top:2.5rem}
a{color:var(--link)}p{max-width:46rem}
code{font:.88em ui-monospace,monospace;background:var(--tint);padding:.1em .3em;border-radius:3px}
nav ul{padding-left:1.2rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);padding-bottom:.4rem}
td,th{border-bottom:1px solid var(--line);padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top}
th{font-weight:600;color:var(--dim)}
.number{text-align:right;white-space:nowrap}
figure{margin:1rem 0}img{max-width:100%;height:auto;display:block}figcaption{color:var(--dim);font-size:.9rem}
@media print{:root{--ink:#000;--dim:#444;--line:#bbb;--back:#fff;--tint:#f3f5f8;--link:#000;color-scheme:light}
body{max-width:none;padding:0;font-size:10pt}nav{display:none}.scroll{overflow:visible}
table{font-size:8pt}td,th{padding-right:.4rem}.number{white-space:normal}
figure,tr{break-inside:avoid}h2{break-after:avoid}}
"""

# What the page may load: pictures that are in it, and nothing from anywhere else. Scripts only where a part needs them.
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"

LIGHT = {"ink": "#1d2530", "back": "#ffffff", "line": "#d8dee6"}
DARK = {"ink": "#e4e8ee", "back": "#15191f", "line": "#3a4350"}
DOTS_PER_INCH = 150


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under their columns. Numbers stand on the right, None is an empty cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, and the same one in dark colours. alt says what is to be seen to whoever cannot see it."""

    png: bytes
    alt: str
    dark: bytes | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Raw:
    """HTML that is put into the page as it is, for what the other parts cannot say. scripts: whether it has any."""

    html: str
    scripts: bool = False


Part = str | Table | Picture | Raw


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]


def page(title: str, sections: Sequence[Section], *, introduction: Sequence[Part] = ()) -> str:
    """The page, to be written as UTF-8. Sections are listed at its top where there are several."""
    parts = [part for section in [Section("", introduction), *sections] for part in section.parts]
    scripts = any(isinstance(part, Raw) and part.scripts for part in parts)
    policy = POLICY + ("; script-src 'unsafe-inline'" if scripts else "")
    listed = "".join(f'<li><a href="#s{i}">{escaped(one.title)}</a></li>' for i, one in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escaped(title)}</h1>\n"
        + "\n".join(map(_part, introduction))
        + (f"\n<nav><ul>{listed}</ul></nav>\n" if len(sections) > 1 else "\n")
        + "\n".join(
            f'<section><h2 id="s{i}">{escaped(one.title)}</h2>\n' + "\n".join(map(_part, one.parts)) + "</section>"
            for i, one in enumerate(sections)
        )
        + "</body></html>\n"
    )


def picture(
    draw: Callable[[Any], object],
    *,
    alt: str,
    caption: str = "",
    size: tuple[float, float] = (8.0, 4.5),
    panels: tuple[int, int] = (1, 1),
) -> Picture:
    """What `draw` puts on matplotlib's axes (with more panels than one: an array of axes), in light and in dark.

    size is in inches, panels are rows and columns. Raises ConfigError where matplotlib is not installed.
    """
    return Picture(_drawn(draw, size, panels, LIGHT), alt, _drawn(draw, size, panels, DARK), caption)


def _drawn(draw: Callable[[Any], object], size: tuple[float, float], panels: tuple[int, int], has: Any) -> bytes:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("pictures need matplotlib: pip install 'prenorm[plot]'.") from error
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    backs = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    style = dict.fromkeys(inks, has["ink"]) | dict.fromkeys(backs, has["back"]) | {"grid.color": has["line"]}
    file = io.BytesIO()
    with matplotlib.rc_context({**style, "axes.grid": True, "font.size": 10}):
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
        draw(figure.subplots(*panels))
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _part(part: Part) -> str:
    match part:
        case str():
            return f"<p>{_prose(part)}</p>"
        case Table():
            return _table(part)
        case Picture():
            return _figure(part)
        case Raw():
            return part.html


def _table(table: Table) -> str:
    by_column = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    kinds = [' class="number"' if any(map(_is_number, cells)) else "" for cells in by_column]
    head = "".join(f"<th{kind}>{escaped(name)}</th>" for name, kind in zip(table.columns, kinds, strict=True))
    rows = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{escaped(_cell(cell))}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{_prose(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )


def _is_number(cell: object) -> bool:
    return isinstance(cell, Real) and not isinstance(cell, bool)


def _cell(cell: object) -> object:
    """None as nothing, a float to four digits, an integer with its thousands."""
    if cell is None:
        return ""
    if not _is_number(cell):
        return cell
    return f"{cell:,}" if isinstance(cell, Integral) else f"{cell:.4g}"


def _figure(one: Picture) -> str:
    dark = f'<source media="screen and (prefers-color-scheme: dark)" srcset="{_data(one.dark)}">' if one.dark else ""
    caption = f"<figcaption>{_prose(one.caption)}</figcaption>" if one.caption else ""
    return f'<figure><picture>{dark}<img alt="{escaped(one.alt)}" src="{_data(one.png)}"></picture>{caption}</figure>'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _prose(text: str) -> str:
    """A paragraph with its code and its links."""
    pieces = re.split(r"(`[^`\n]+`|https?://[^\s<>\"'`]*[^\s<>\"'`.,;:!?)\]])", text)
    return "".join(_code_or_link(piece) if i % 2 else escaped(piece) for i, piece in enumerate(pieces))


def _code_or_link(piece: str) -> str:
    if piece.startswith("`"):
        return f"<code>{escaped(piece[1:-1])}</code>"
    return f'<a href="{escaped(piece)}">{escaped(piece)}</a>'


def escaped(text: object) -> str:
    """Text that a browser shows and never obeys; what UTF-8 or HTML cannot hold is shown as U+FFFD."""
    whole = str(text).encode("utf-8", "replace").decode()
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", whole))
