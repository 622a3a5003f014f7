"""Draws the block and the house: docs/pictures/block.svg and house.svg. `make pictures` runs it, a test compares."""

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1f2328 }
.code { font: 14px ui-monospace, monospace }
.small { font-size: 13px; fill: #59636e }
.room { fill: #f6f8fa; stroke: #59636e }
.maths { fill: #ddf4ff; stroke: #0969da }
.line { fill: none; stroke: #1f2328; stroke-width: 1.5 }
.head { fill: #1f2328 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 }
  .room { fill: #151b23; stroke: #9198a1 } .maths { fill: #10263e; stroke: #4493f8 }
  .line { stroke: #f0f6fc } .head { fill: #f0f6fc }
}
"""


def picture(width: int, height: int, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def room(x: float, y: float, width: float, height: float, kind: str = "room") -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>'


def line(*points: tuple[float, float]) -> str:
    return f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" class="line"/>'


def arrow(*points: tuple[float, float]) -> str:
    """A line that ends in a head; its last piece runs straight down or straight to the left."""
    (before, _), (x, y) = points[-2:]
    corners = ((x, y), (x - 5, y - 8), (x + 5, y - 8)) if before == x else ((x, y), (x + 8, y - 5), (x + 8, y + 5))
    return line(*points) + f'<polygon points="{" ".join(f"{a},{b}" for a, b in corners)}" class="head"/>'


def block() -> str:
    """One block from top to bottom: two sublayers, each on a branch of the residual stream."""
    middle, right, top = 150, 330, 34
    parts = [text(middle, 22, "x  (..., seq, d_model)", anchor="middle")]
    sublayers = (
        ("norm1: RMSNorm", "attn: SelfAttention", "q, k, v; RoPE; softmax; o", "x = x + attention(norm1(x))"),
        ("norm2: RMSNorm", "ffn: SwiGLU", "down(silu(gate x) * up x)", "x = x + feed_forward(norm2(x))"),
    )
    for norm, layer, maths, code in sublayers:
        plus = top + 176
        parts += [
            arrow((middle, top), (middle, plus - 12)),
            arrow((middle, top + 16), (right, top + 16), (right, top + 34)),
            *(room(right - 110, top + 34, 220, 32), text(right, top + 55, norm, anchor="middle")),
            arrow((right, top + 66), (right, top + 88)),
            room(right - 110, top + 88, 220, 54, "maths"),
            text(right, top + 110, layer, anchor="middle"),
            text(right, top + 130, maths, "small", "middle"),
            arrow((right, top + 142), (right, plus), (middle + 12, plus)),
            f'<circle cx="{middle}" cy="{plus}" r="12" class="room"/>',
            text(middle, plus + 5, "+", anchor="middle"),
            text(right + 130, top + 110, code, "code"),
        ]
        top = plus + 12
    parts += [arrow((middle, top), (middle, top + 28)), text(middle, top + 46, "the next block", anchor="middle")]
    parts.append(text(middle - 12, 140, "the residual stream", "small", "end"))
    return picture(730, top + 60, "The pre-norm Transformer block", parts)


def house() -> str:
    """README's list as floors: each stands on those below it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.search(r"## Reading order.*?```text\n(.*?)```", readme, re.DOTALL)
    assert listed
    floors = [re.split(r"\s{3,}", entry, maxsplit=1) for entry in listed[1].strip().splitlines()][::-1]
    left, width, height, top = 20, 860, 34, 70
    parts = [
        f'<polygon points="{left},{top} {left + width / 2},14 {left + width},{top}" class="room"/>',
        text(left + width / 2, 54, "prenorm", anchor="middle"),
    ]
    for names, what in floors:
        several = len(names.split()) > 2  # the list of files has a line of its own
        tall = height * (2 if several else 1) - (14 if several else 0)
        kind = "maths" if names.split()[0] in ("blocks/", "layers/", "ops/", "kernels/") else "room"
        parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{tall}" class="{kind}"/>')
        parts += [text(left + 12, top + 22, names, "code")]
        parts += [text(left + (12 if several else 190), top + (42 if several else 22), what, "small")]
        top += tall
    note = "Each floor imports only from those below it; a test holds it to that. The blue floors are the block."
    parts.append(text(left, top + 24, note, "small"))
    return picture(900, top + 36, "The house: the folders of the package", parts)


PICTURES = {"block.svg": block, "house.svg": house}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
