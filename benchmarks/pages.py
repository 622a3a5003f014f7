"""The tables in README and docs that are of `benchmarks/results`: `make bench-pages` writes them anew.

A page has a line `<!-- figures: blocks -->` before a table's place and `<!-- end of figures -->` after it. Every file
of results of that benchmark has its table there, with the processor, the date and the versions. A test holds the pages
to the files, so that no figure in them is typed in by hand.
"""

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
MODELS = {"prefill": "128 tokens of a prompt"}


def main() -> None:
    """Write the tables into their places."""
    for page in pages():
        page.write_text(written(page.read_text()))


def pages() -> list[Path]:
    """Every page with a place for tables."""
    return [
        page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if PLACE.search(page.read_text())
    ]


def written(text: str) -> str:
    """A page with its tables as the results have them."""
    return PLACE.sub(lambda place: place[1] + "\n".join([*_tables(place[2]), ""]) + place[3], text)


def _tables(name: str) -> list[str]:
    if name == "summary":
        return summary()
    return [*(line for result in results(name) for line in ("", where(result), "", *TABLES[name](result))), ""]


def results(benchmark: str) -> list[dict[str, Any]]:
    """What was measured, the newest first."""
    found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{benchmark}-*.json"))]
    return sorted(found, key=lambda result: result["date"], reverse=True)


def where(result: dict[str, Any]) -> str:
    """The machine, the date and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    held = ", everybody held to AVX2" if result["kernels"].startswith("x86-64-v3") else ""
    machine = f"{result['cores']} cores of {result['processor']}{held}, {result['threads']} threads"
    return f"On {machine}, {versions}, {result['date']}:"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """The median of theirs / ours, round by round, with the lowest and the highest."""
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f}..{max(each):.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def blocks(result: dict[str, Any]) -> list[str]:
    """Times of the others over ours, which stands in milliseconds."""
    peers = [name for name in result["cells"][0]["seconds"] if name != "prenorm"]
    rows = []
    for cell in result["cells"]:
        way, tokens, dtype = cell["cell"].split("-")
        ours = cell["seconds"]["prenorm"]
        middle = statistics.median(ours)
        way = "forward and backward" if way == "both" else way
        rows.append(
            [
                f"{way}, {tokens} tokens, {dtype}",
                f"{1e3 * middle:.0f} ms",
                *(ratio(cell["seconds"][name], ours) for name in peers),
                f"{cell['products'] / middle:.0%}",
            ]
        )
    return table(["", "prenorm", *peers, "products alone"], rows)


def decode(result: dict[str, Any]) -> list[str]:
    """Rates beside transformers."""
    rows = []
    for cell in result["cells"]:
        rates = cell["tokens_per_second"]
        ours, theirs = rates["prenorm"], rates["transformers"]
        shares = [
            rate * cell["bytes_per_step"] / most for rate, most in zip(ours, cell["bytes_per_second"], strict=True)
        ]
        rows.append(
            [
                said(cell["cell"]),
                *(f"{statistics.median(rates[name]):.1f}" for name in ("prenorm", "layer by layer", "transformers")),
                ratio(ours, theirs),
                f"{statistics.median(shares):.0%}" if "-1-" in cell["cell"] else "",
                "yes" if cell["same_text"] else "no",
            ]
        )
    head = ["", "prenorm, tokens/s", "layer by layer", "transformers", "ratio", "share of the bandwidth", "same text"]
    return table(head, rows)


def llama(result: dict[str, Any]) -> list[str]:
    """Rates beside llama.cpp."""
    rows = []
    for cell in result["cells"]:
        rates, size = cell["tokens_per_second"], cell["bytes_per_step"]
        shares = [
            statistics.median(a * size[name] / b for a, b in zip(rates[name], cell["bytes_per_second"], strict=True))
            for name in rates
        ]
        rows.append(
            [
                said(cell["cell"]),
                *(f"{statistics.median(rate):.1f}" for rate in rates.values()),
                ratio(*rates.values()),
                ", ".join(f"{share:.0%}" for share in shares) if "-1-" in cell["cell"] else "",
            ]
        )
    return table(["", "prenorm, tokens/s", "llama.cpp", "ratio", "share of the bandwidth"], rows)


def quantized(result: dict[str, Any]) -> list[str]:
    """Rates in integers beside bfloat16."""
    rows = []
    for cell in result["cells"]:
        rates = cell["tokens_per_second"]
        ratios = (ratio(rates[kind], rates["bfloat16"]) for kind in ("int8", "int4"))
        rows.append([said(cell["cell"]), *(f"{statistics.median(rate):.1f}" for rate in rates.values()), *ratios])
    return table(["tokens/s", "bfloat16", "int8", "int4", "int8 / bfloat16", "int4 / bfloat16"], rows)


def training(result: dict[str, Any]) -> list[str]:
    """Steps beside those of other packages, then the loss beside the plain pair."""
    steps, losses = [], []
    for cell in result["cells"]:
        what, dtype = cell["cell"].split("-")
        if what == "step":
            rates = cell["tokens_per_second"]
            ours = rates["prenorm"]
            share = cell["products"] * statistics.median(ours) / TOKENS
            for name, theirs in rates.items():
                own = name == "prenorm"
                middle = f"{statistics.median(theirs):.0f}"
                steps.append([dtype, name, middle, "" if own else ratio(ours, theirs), f"{share:.0%}" if own else ""])
        elif what == "loss":
            ours, plain = cell["seconds"]["prenorm"], cell["seconds"]["plain"]
            held = [f"{cell['peak_bytes'][name] / 1e6:.0f} MB" for name in ("prenorm", "plain")]
            seconds = [f"{statistics.median(each):.2f} s" for each in (ours, plain)]
            losses.append([dtype, *seconds, ratio(plain, ours), *held])
    return [
        *table(["a step", "", "tokens/s", "prenorm / theirs", "products alone"], steps),
        "",
        *table(["linear_cross_entropy", "prenorm", "plain pair", "plain / prenorm", "memory", "plain pair"], losses),
    ]


TOKENS = 2048  # of a training step
TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "blocks": blocks,
    "decode": decode,
    "llama": llama,
    "quantized": quantized,
    "training": training,
}


def said(cell: str) -> str:
    """A cell of decoding in words."""
    model, what, *dtype = cell.split("-")
    return ", ".join([model, *dtype, MODELS.get(what, f"batch {what}")])


def summary() -> list[str]:
    """For the README: every benchmark's ratio to the fastest of its peers, a column for each processor and dtype."""
    columns: dict[str, dict[str, str]] = {}
    for name, collect in (
        ("blocks", _of_blocks),
        ("decode", _of_decode),
        ("llama", _of_llama),
        ("training", _of_steps),
    ):
        for result in results(name):
            if not result["kernels"].startswith("x86-64-v3"):
                for row, dtype, value in collect(result):
                    columns.setdefault(f"{result['processor']}, {dtype}", {}).setdefault(row, value)
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    lines = [[row, *(column.get(row, "") for column in columns.values())] for row in rows]
    return table(["", *columns], lines) if rows else []


Found = list[tuple[str, str, str]]  # a row, a dtype, a value


def _least(ours: Sequence[float], others: dict[str, Sequence[float]], *, rates: bool) -> float:
    """The ratio to the fastest of the others."""
    pairs = ((ours, each) if rates else (each, ours) for each in others.values())
    return min(statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs)


def _of_blocks(result: dict[str, Any]) -> Found:
    found: dict[tuple[str, str], list[str]] = {}
    for cell in result["cells"]:
        way, _, dtype = cell["cell"].split("-")
        others = {name: each for name, each in cell["seconds"].items() if not name.startswith("prenorm")}
        value = f"{_least(cell['seconds']['prenorm'], others, rates=False):.2f}"
        row = "a block, forward" if way == "forward" else "a block, forward and backward"
        found.setdefault((f"{row}, 512 and 2048 tokens: the fastest of six peers", dtype), []).append(value)
    return [(row, dtype, ", ".join(values)) for (row, dtype), values in found.items()]


def _of_rates(result: dict[str, Any], peer: str) -> Found:
    found: dict[tuple[str, str], list[str]] = {}
    for cell in result["cells"]:
        model, what, dtype = cell["cell"].split("-")
        rates = cell["tokens_per_second"]
        value = f"{_least(rates['prenorm'], {peer: rates[peer]}, rates=True):.2f}"
        done = "a prompt of 128 tokens" if what == "prefill" else "decoding, batch 1 and 8"
        if model == "110M":
            found.setdefault((f"{done}, 110M parameters: {peer}", dtype), []).append(value)
    return [(row, dtype, ", ".join(values)) for (row, dtype), values in found.items()]


def _of_decode(result: dict[str, Any]) -> Found:
    return _of_rates(result, "transformers")


def _of_llama(result: dict[str, Any]) -> Found:
    found = _of_rates(result, "llama.cpp")
    return [each for each in found if each[0].startswith("decoding") and not each[1].startswith("int")]


def _of_steps(result: dict[str, Any]) -> Found:
    found = []
    for cell in result["cells"]:
        what, dtype = cell["cell"].split("-")
        if what == "step":
            rates = cell["tokens_per_second"]
            others = {name: each for name, each in rates.items() if name != "prenorm"}
            row = "a training step, 110M parameters: the fastest of transformers, litgpt, a GPT as nanoGPT's"
            found.append((row, dtype, f"{_least(rates['prenorm'], others, rates=True):.2f}"))
    return found


if __name__ == "__main__":
    main()
