"""Where the FLOPs of a forward pass go: the figures and the picture of docs/where-do-the-flops-go.md: `make flops`.

Nothing is timed: every number follows from sizes, as `prenorm cost` counts them.
"""

from pathlib import Path

from matplotlib import rcParams
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from prenorm.config import ModelConfig
from prenorm.costs import flops
from prenorm.costs.architecture import Architecture, architecture_of
from prenorm.published import PUBLISHED

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "where-do-the-flops-go.svg"
TOKENS = 2048
BLOCK = ModelConfig(vocab_size=32000, d_model=4096, num_layers=1, num_heads=32, d_ff=11008)
PARTS = ("projections", "scores", "weighted_values", "feed_forward", "head")
COLORS = dict(zip(PARTS, ("tab:blue", "tab:orange", "tab:red", "tab:green", "tab:gray"), strict=True))
SHOWN = "llama-3.1-405b"  # whose context is long enough
CONTEXTS = [2**power for power in range(10, 18)]


def main() -> None:
    """Print the tables and draw the picture."""
    for line in tables():
        print(line)
    draw(PICTURE)


def tables() -> list[str]:
    """The page's tables, as Markdown."""
    block, gpt3 = architecture_of(BLOCK), Architecture(**PUBLISHED["gpt3-175b"].fields)
    accounts = by_the_rule(block), forward(block, causal=False), forward(block, causal=True)
    lines = ["| GFLOP, one block | the rule | every query with every key | with the keys that it sees |"]
    lines += ["|---|--:|--:|--:|"]
    for part in PARTS[:-1]:
        lines += [f"| {part.replace('_', ' ')} | {' | '.join(f'{one[part] / 1e9:,.2f}' for one in accounts)} |"]
    sums = [sum(one[part] for part in PARTS[:-1]) for one in accounts]
    lines += [f"| **sum** | {' | '.join(f'**{one / 1e9:,.2f}**' for one in sums)} |"]
    lines += [f"| times the rule | 1 | {sums[1] / sums[0]:.2f} | {sums[2] / sums[0]:.2f} |", ""]
    whole = [sum(forward(gpt3, causal=one).values()) for one in (False, True)]
    lines += ["| TFLOP, GPT-3, forward, 2,048 tokens | |", "|---|--:|"]
    lines += [f"| the rule for the block above, times 96 | {96 * sums[0] / 1e12:,.1f} |"]
    lines += [f"| all of the block above, times 96 | {96 * sums[1] / 1e12:,.1f} |"]
    lines += [f"| the rule at GPT-3's sizes | {sum(by_the_rule(gpt3).values()) / 1e12:,.1f} |"]
    lines += [f"| GPT-3, every query with every key | {whole[0] / 1e12:,.1f} |"]
    lines += [f"| GPT-3, with the keys that it sees | {whole[1] / 1e12:,.1f} |", ""]
    lines += [f"| share of {SHOWN}'s forward pass | {' | '.join(f'{context:,}' for context in CONTEXTS)} |"]
    lines += [f"|---|{'--:|' * len(CONTEXTS)}"]
    for part, shares in shares_by_context().items():
        lines += [f"| {part.replace('_', ' ')} | {' | '.join(f'{share:.1%}' for share in shares)} |"]
    return lines


def by_the_rule(model: Architecture) -> dict[str, int]:
    """What the text-book rule counts: one product of attention, and one of the feed-forward layer's matrices."""
    parts = dict.fromkeys(PARTS, 0)
    parts["scores"] = model.num_layers * 2 * TOKENS * TOKENS * model.d_model
    parts["feed_forward"] = model.num_layers * 2 * TOKENS * model.d_model * model.d_ff
    return parts


def forward(model: Architecture, *, causal: bool) -> dict[str, int]:
    """The forward pass of a row of TOKENS."""
    return flops.forward(model, 1, TOKENS, causal=causal)


def shares_by_context() -> dict[str, list[float]]:
    """The share of each part in a row of each length, attention with the keys that it sees."""
    model = architecture_of(ModelConfig.preset(SHOWN))
    passes = [flops.forward(model, 1, context, causal=True) for context in CONTEXTS]
    return {part: [one[part] / sum(one.values()) for one in passes] for part in PARTS}


def draw(path: Path) -> None:
    """Two panels: the block by the rule and in full, and the shares over the context."""
    rcParams["svg.hashsalt"] = "prenorm"  # the same file from the same numbers
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    bars, areas = figure.subplots(1, 2)
    block = architecture_of(BLOCK)
    accounts = {
        "text-book rule": by_the_rule(block),
        "every query\nwith every key": forward(block, causal=False),
        "with the keys\nthat it sees": forward(block, causal=True),
    }
    for name, parts in accounts.items():
        left = 0.0
        for part in PARTS[:-1]:
            bars.barh(name, parts[part] / 1e9, left=left, color=COLORS[part], height=0.6)
            left += parts[part] / 1e9
        bars.text(left + 10, name, f"{left:,.0f}", va="center")
    bars.invert_yaxis()
    bars.set_xlim(0, 1050)
    bars.set_xlabel("GFLOP, forward")
    bars.set_title("One block, 2,048 tokens", fontsize=10)
    shares = shares_by_context()
    labels = [part.replace("_", " ") for part in PARTS]
    areas.stackplot(CONTEXTS, shares.values(), labels=labels, colors=COLORS.values())
    areas.set_xscale("log", base=2)
    areas.set_xticks(CONTEXTS, [f"{context // 1024}k" for context in CONTEXTS])
    areas.margins(0)
    areas.set_xlabel("tokens in a row")
    areas.set_ylabel("share of the forward pass")
    areas.set_title(f"{SHOWN}, causal", fontsize=10)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
