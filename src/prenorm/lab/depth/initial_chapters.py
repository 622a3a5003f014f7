"""Before training: what the norms of activations and gradients say about depth."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ...page import Table
from ..drawing import draw_lines, within
from ..folder import Cells, Record
from ..intervals import Claim, Finding, Numbers, exponent, slope
from ..model import OURS, STARTS, XAVIER
from ..report import Chapter, Drawing
from ..variants import VARIANTS
from .initial import Initial, Of
from .plan import Scale

XIONG = "Xiong et al. 2020, https://arxiv.org/abs/2002.04745"
DEEPNET = "Wang et al. 2022 (DeepNet), https://arxiv.org/abs/2203.00555"
LORE = "common lore"
GPT2 = "Radford et al. 2019 (GPT-2), section 2.3"
LAST_GRADIENTS_MEAN = (
    "What that means for the lore: the fall is not a property of where the norm stands. A pre-norm stream grows as "
    "blocks add to it, the final norm divides by its size, and so the gradients shrink. A start that keeps the stream "
    "from growing takes the fall away, with the norms where they were.",
)
EXTREME = (1e-6, 1e6)  # lines that leave this would press all others flat
PANELS: dict[str, Any] = {"size": (10.0, 4.5), "panels": (1, 2)}


def initial_chapters(scale: Scale, cells: Cells) -> list[Chapter]:
    """The chapters about models that have learned nothing yet."""
    initial = Initial(scale, cells)
    return [_last_gradients(initial), _gradient_flow(initial), _weights(initial), _stream(initial), _update(initial)]


def _last_gradients(initial: Initial) -> Chapter:
    def last(record: Record) -> float | None:
        return record["last_ffn_gradient"][-1]  # of the last block

    exponents = {(v, s): initial.exponent(v, s, last) for v in VARIANTS for s in STARTS}
    falls = Claim(
        "with pre-norm the gradient of the last feed-forward weights falls like 1/sqrt(depth), from Xavier's start",
        f"{XIONG}, theorem 1",
        -0.6,
        -0.4,
    )
    findings = [
        Finding(falls, exponents["pre-norm", XAVIER]),
        Finding(
            Claim("with post-norm it is about the same at any depth, from Xavier's start", falls.source, -0.1, 0.1),
            exponents["post-norm", XAVIER],
        ),
        Finding(
            Claim("with pre-norm it falls like 1/sqrt(depth) from the depth-scaled start, too", LORE, -0.6, -0.4),
            exponents["pre-norm", OURS],
        ),
    ]
    return Chapter(
        title="How large is the last layer's gradient?",
        text=[
            "The norm of the gradient of the last matrix in the last feed-forward, as depth^b. From Xavier's start the "
            f"exponent is {_told(exponents['pre-norm', XAVIER])} for pre-norm and "
            f"{_told(exponents['post-norm', XAVIER])} for post-norm; from the depth-scaled start that `TransformerLM` "
            f"has, {_told(exponents['pre-norm', OURS])} and {_told(exponents['post-norm', OURS])}.",
            *(LAST_GRADIENTS_MEAN if findings[-1].verdict == "disagrees" else ()),
        ],
        findings=findings,
        drawing=Drawing(
            name="last-gradients",
            draw=_by_depth(initial, last, "gradient norm, last feed-forward matrix"),
            alt="Gradient norms of the last feed-forward matrix over depth, both axes logarithmic, a line a variant.",
            **PANELS,
        ),
        table=_depth_table(initial, last, exponents, "Gradient norm by depth (geometric mean over seeds)"),
    )


def _gradient_flow(initial: Initial) -> Chapter:
    def of(record: Record) -> Sequence[float | None]:
        return record["activation_gradient"]

    def rate(layers: Numbers, values: Numbers) -> float:
        # Per block, from the last to the first. What became 0 in float64 has no logarithm: the rest says how fast.
        points = [(layer, math.log(one)) for layer, one in zip(layers, values, strict=True) if one]
        return math.exp(-slope(*zip(*points, strict=True))) if len(points) > 1 else 0.0

    rates = {(v, s): initial.over_layers(v, s, of, rate) for v in VARIANTS for s in STARTS}
    highway = Claim("with residuals gradients reach the first block unchanged", LORE, 0.95, 1.05)
    vanish = Claim(
        "without residuals gradients vanish on the way to the first block",
        "common lore; for queries and keys, Noci et al. 2022, https://arxiv.org/abs/2206.03126",
        -math.inf,
        0.95,
    )
    findings = [
        Finding(claim._replace(text=f"{claim.text} ({variant}, {start} start)"), rates[variant, start])
        for claim, variant in ((highway, "pre-norm"), (highway, "post-norm"), (vanish, "no residual"))
        for start in STARTS
    ]
    rows = [(v, *(_cell(rates[v, s]) for s in STARTS)) for v in VARIANTS]
    return Chapter(
        title="Do gradients reach the first layer?",
        text=[
            "The gradient of the loss with respect to the residual stream, layer by layer, at depth "
            f"{initial.deepest}. The rate is what its norm is multiplied by from one block to the one before it: below "
            f"1 it vanishes, above 1 it explodes. From Xavier's start it is {_told(rates['pre-norm', XAVIER])} for "
            f"pre-norm, {_told(rates['post-norm', XAVIER])} for post-norm, and without residuals "
            f"{_told(rates['no residual', XAVIER])}.",
            "Where there are norms but no residuals, nothing need vanish: what a sublayer gives is smaller than what "
            "it took, the next norm scales it up again, and its backward pass multiplies the gradient by as much. From "
            "a start so small that the stream falls below the norms' eps, all vanishes, until no number is left.",
        ],
        findings=findings,
        drawing=Drawing(
            name="gradient-flow",
            draw=_by_layer(initial, "activation_gradient", "gradient norm of the stream"),
            alt="Gradient norms of the residual stream over the layers of the deepest model, a line a variant.",
            **PANELS,
        ),
        table=Table(
            ("variant", *(f"rate per block, {start}" for start in STARTS)),
            rows,
            f"Mean over seeds and 95 % interval, at depth {initial.deepest}; empty: a gradient was not finite",
        ),
    )


def _weights(initial: Initial) -> Chapter:
    def ends(record: Record) -> float | None:
        first, *_, last = record["weight_gradient"]
        return first / last if first and last else None

    rows = [
        (v, *(initial.mean(v, start, depth, ends) for start in STARTS for depth in initial.scale.initial_depths))
        for v in VARIANTS
    ]
    columns = tuple(f"{start}, {depth}" for start in STARTS for depth in initial.scale.initial_depths)
    return Chapter(
        title="Which layers get the gradient?",
        text=[
            "The norm of the gradient of all weights of a block. The table has the first block's divided by the last "
            "block's: 1 means that they learn at the same pace by plain gradient descent. Adam divides by a running "
            "size of each gradient, so it feels the ratio much less."
        ],
        drawing=Drawing(
            name="weight-gradients",
            draw=_by_layer(initial, "weight_gradient", "gradient norm of a block's weights"),
            alt="Gradient norms of the weights of each block of the deepest model, a line a variant.",
            **PANELS,
        ),
        table=Table(("variant", *columns), rows, "First block's norm over the last block's, by start and depth"),
    )


def _stream(initial: Initial) -> Chapter:
    def squares(record: Record) -> Sequence[float | None]:
        first, *others = record["activation"]
        return [None if one is None or first is None else one**2 - first**2 for one in others]

    def growth(layers: Numbers, values: Numbers) -> float:
        found = exponent([layer + 1 for layer in layers], values)
        return math.nan if found is None else found

    def end(record: Record) -> float | None:
        return record["activation"][-1]

    exponents = {(v, s): initial.exponent(v, s, end) for v in VARIANTS for s in STARTS}
    grown = initial.over_layers("pre-norm", XAVIER, squares, growth)
    findings = [
        Finding(
            Claim(
                "in pre-norm the stream's mean square grows in proportion to the layer, from Xavier's start",
                f"{XIONG}, lemma 2",
                0.9,
                1.1,
            ),
            grown,
        ),
        Finding(
            Claim("a depth-scaled start keeps the stream's end from growing with depth (pre-norm)", GPT2, -0.1, 0.1),
            exponents["pre-norm", OURS],
        ),
    ]
    return Chapter(
        title="What does depth do to the residual stream?",
        text=[
            f"The root mean square of the stream after each block, at depth {initial.deepest}. In pre-norm from "
            f"Xavier's start what has been added grows like layer^b in the square, with b = {_told(grown)}; at the end "
            f"the root mean square is depth^{_told(exponents['pre-norm', XAVIER])}. From the depth-scaled start it is "
            f"depth^{_told(exponents['pre-norm', OURS])}.",
            "So each further block of a deep pre-norm model changes a smaller part of what it is added to. Without any "
            "norm the stream multiplies instead of adding, and overflows.",
        ],
        findings=findings,
        drawing=Drawing(
            name="stream",
            draw=_by_layer(initial, "activation", "root mean square of the stream"),
            alt="Root mean square of the residual stream over the layers of the deepest model, a line a variant.",
            **PANELS,
        ),
        table=_depth_table(initial, end, exponents, "Root mean square at the end of the stream, by depth"),
    )


def _update(initial: Initial) -> Chapter:
    def of(record: Record) -> float | None:
        return record["update"]

    exponents = {(v, s): initial.exponent(v, s, of) for v in VARIANTS for s in STARTS}
    bound = Claim("with DeepNorm the first step changes the output by as much at any depth", DEEPNET, -0.1, 0.1)
    findings = [
        Finding(bound, exponents["DeepNorm", XAVIER]),
        Finding(
            Claim("with post-norm it changes it by more, the deeper the model", DEEPNET, 0.0, math.inf),
            exponents["post-norm", XAVIER],
        ),
    ]
    return Chapter(
        title="How far does the first step move the model?",
        text=[
            "How far the final hidden states move, per unit of learning rate, when all matrices of the blocks take one "
            "step of plain gradient descent. It is the number that DeepNorm was made to bound: as depth^b it has "
            f"b = {_told(exponents['DeepNorm', XAVIER])}, where post-norm has {_told(exponents['post-norm', XAVIER])} "
            f"and pre-norm {_told(exponents['pre-norm', XAVIER])}, all from Xavier's start.",
        ],
        findings=findings,
        drawing=Drawing(
            name="first-step",
            draw=_by_depth(initial, of, "change of the output, per unit of rate"),
            alt="Change of the model's output by one step, over depth, both axes logarithmic, a line a variant.",
            **PANELS,
        ),
        table=_depth_table(initial, of, exponents, "Change of the final hidden states per unit of learning rate"),
    )


def _by_depth(initial: Initial, of: Of, label: str) -> Callable[[Any], None]:
    def draw(panels: Any) -> None:
        for axes, start in zip(panels, STARTS, strict=True):
            logs = {"xscale": "log", "yscale": "log"}
            draw_lines(axes, initial.lines(start, of), title=f"{start} start", xlabel="blocks", ylabel=label, **logs)
            axes.set_xticks(initial.scale.initial_depths, [str(depth) for depth in initial.scale.initial_depths])
            axes.minorticks_off()
            within(axes, EXTREME)
        panels[-1].legend(fontsize="small")

    return draw


def _by_layer(initial: Initial, name: str, label: str) -> Callable[[Any], None]:
    def draw(panels: Any) -> None:
        for axes, start in zip(panels, STARTS, strict=True):
            title = f"{start} start, {initial.deepest} blocks"
            draw_lines(axes, initial.layer_lines(start, name), title=title, xlabel="layer", ylabel=label, yscale="log")
            within(axes, EXTREME)
        panels[-1].legend(fontsize="small")

    return draw


def _depth_table(initial: Initial, of: Of, exponents: dict[tuple[str, str], Any], caption: str) -> Table:
    depths = initial.scale.initial_depths
    rows = [
        (v, start, *(initial.mean(v, start, depth, of) for depth in depths), _cell(exponents[v, start]))
        for start in STARTS
        for v in VARIANTS
    ]
    caption = f"{caption}; exponent: b in depth^b, mean over seeds and 95 % interval; empty: not finite, or 0"
    return Table(("variant", "start", *map(str, depths), "exponent"), rows, caption)


def _cell(found: Any) -> str | None:
    return None if found is None else str(found)


def _told(found: Any) -> str:
    return "no number" if found is None else str(found)
