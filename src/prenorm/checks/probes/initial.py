"""What the constructor built: whether d_ff is respected, and whether training can start from the weights."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..formula.parameters import Piece, Raw, Sizes
from ..source.constructors import without_constructors
from ..subject.learner import USUAL, Built
from ..subject.raised import LearnerError
from .case import Case, raised

LOUD = 0.5  # a larger standard deviation than any rule gives a matrix with 32 inputs; 1/sqrt(32) is 0.18
FEWEST = 200  # entries, for a meaningful mean and standard deviation
WIDE = 1024  # a width that is trained in practice
FEWEST_ALIKE = {1: 3, 2: 2}
"""Of a sublayer's matrices of d_model x d_model (of attention), and of those of two sizes."""
FAINT = 0.1  # of 1/sqrt(d_in); initialisations for deep models use down to a fifth of it
LATER = re.compile(
    r"\.apply\("
    r"|def (?!_?reset_parameters\b)_?(init|reset|initiali[sz]e)\w*(weight|param|model)\w*"
    r"\(\s*(self|module|model|layer|net|m)\b"
    r"|(?<!def )\b_?reset_parameters\b"
)
"""A model that initialises its blocks' weights: by such a method, or by calling that of torch's modules.

What a constructor of the block runs is no later code.
"""
LEFT = re.compile(r"init\w*\s*=\s*lambda \w+: *(\w+|None)\s*[,)\n]")
"""An initialiser that does nothing, because a checkpoint fills the weights."""
LOADED = re.compile(r"load_state_dict\(|from_pretrained\(|load_file\(")
TRAINED = re.compile(r"\.backward\(|\b(optim|[Oo]ptimi[sz]er)\b")
"""Training code, whose checkpoints begin with the weights of the constructor."""
SWITCHED_OFF = re.compile(r"@\s*(torch\.)?(no_grad|inference_mode)\b[^\n]*\s+def forward\b")
WIDTH_NAMES = frozenset(
    ["d_ff", "dff", "d_mlp", "ff_dim", "ffn_dim", "mlp_dim", "dim_feedforward", "intermediate_size", "d_hidden"]
)
"""Names of d_ff that mean the width itself; a width may be derived from others, such as hidden_dim."""

OF_VECTORS = "initialise it in the constructor: torch.ones for a norm's weight, torch.zeros for a bias"

ALL_ZERO = (
    "of the matrices that follow each other in a sublayer, begin at most one at zero, such as the last projection"
)
STEPS, STEP = 4, 0.01
"""Training steps from the first weights: a chain of zeros comes alive from its end, a matrix in each step."""

NORM = re.compile(r"norm|rms|(^|[._ ])ln", re.IGNORECASE)

MULTIPLE = 256
"""Meta's code rounds widths up to multiples of this: d_ff, 2/3 of it, or 8/3 of d_model by default."""
LARGER = 8
"""Times the sizes: there the rule gives neither a fixed width nor 4 or 8 times d_model."""


def constructed(case: Case, text: str) -> None:
    """Check the weights as the constructor leaves them. text: the source of the block and of the files next to it."""
    try:
        built = case.build(filled=True)
        case.initial = built.values()
        case.classes, case.made_of = built.classes, built.made_of
        if built.of_prenorm:
            case.report.conventions["from_prenorm"] = ", ".join(built.of_prenorm)
    except LearnerError as error:
        case.report.skip("weights at the start", raised(error))
        return
    frozen = [
        one["name"]
        for one in built.parameters
        if not one["requires_grad"] and len(one["shape"]) == 2 and case.sizes.d_model in one["shape"]
    ]
    empty = [name for name, value in case.initial.items() if not torch.isfinite(value).all()]
    case.switched_off = bool(SWITCHED_OFF.search(text)) and not TRAINED.search(text)
    case.for_inference = bool(frozen) and {*frozen} <= {*empty} and not TRAINED.search(text)
    if case.for_inference:
        case.report.conventions["weights"] = "frozen, and left for a checkpoint to fill, as in code for inference"
        case.report.skip("weights at the start", "a checkpoint fills them")
        return
    if frozen:
        case.report.found("gradient_missing", f"requires_grad is False for {_list(frozen)}")
    later = without_constructors(text, str(case.learner.made["name"]))
    if LATER.search(later) or ((LOADED.search(text) or LEFT.search(text)) and not TRAINED.search(text)):
        case.report.skip("weights at the start", "other code initialises or loads them later")
        return
    if empty:
        vectors = all(case.initial[name].dim() < 2 for name in empty)
        case.report.found(
            "weights_uninitialised", f"nothing fills {_list(empty)}", mend=OF_VECTORS if vectors else None
        )
        _place(case, "weights_uninitialised", empty[0])
    name, problem = _scale(case)
    if problem:
        case.report.found("weight_init_scale", problem)
        _place(case, "weight_init_scale", name)
    stuck = [] if empty else _stuck(case)
    at_zero = f"{_list(stuck)} begin at zero, and get a gradient of exactly zero in each of {STEPS} training steps"
    if stuck:
        case.report.found("weight_init_scale", at_zero, mend=ALL_ZERO)
        _place(case, "weight_init_scale", stuck[0])
    reasons = [
        problem,
        at_zero if stuck else "",
        f"nothing fills {_list(empty)}" if empty else "",
        f"requires_grad is False for {_list(frozen)}" if frozen else "",
    ]
    reason = "; ".join(filter(None, reasons))
    if not reason and not _matrices(case.initial):
        case.report.skip("weights at the start", "none of its parameters is a matrix")
        return
    case.report.check("weights at the start", not reason, reason or "initialised, with a usual scale")


def _stuck(case: Case) -> list[str]:
    """Matrices that begin at zero and stay there, because gradients reach each of them only through another of them.

    One zero matrix of a product, such as an output projection, gets a gradient in the first step, and the others then.
    """
    zero = [name for name, value in case.initial.items() if value.dim() > 1 and not value.any()]
    if not zero:
        return []
    raw = dict(case.initial)
    try:
        built = case.build()
        for _ in range(STEPS):
            x, cotangent = (case.x(2, case.tokens, dtype=torch.float32) for _ in range(2))
            given = built.run(raw, x, cotangent=cotangent, training=True).gradients
            gradients = {name: gradient for name, gradient in given.items() if gradient is not None and name in raw}
            zero = [name for name in zero if name in gradients and not gradients[name].any()]
            raw |= {name: raw[name] - STEP * gradient.sign() for name, gradient in gradients.items()}
    except LearnerError:
        return []  # the checks of forward and backward report it
    return zero


def _place(case: Case, id: str, name: str) -> None:
    """Store the statement that gave a weight the numbers that the constructor leaves."""
    with contextlib.suppress(LearnerError):
        if frames := case.build(origins=True).origins.get(name):
            case.report.errors.setdefault(id, {"frames": frames})


def _scale(case: Case) -> tuple[str, str]:
    """A matrix and what is wrong with its scale, or empty strings."""
    norms = {name for name, value in case.initial.items() if _is_norm_over_positions(case, name, value)}
    first = {name: value for name, value in _matrices(case.initial).items() if name not in norms}
    loud = {name: value for name, value in first.items() if float(value.std()) > LOUD}
    aside = {
        name: value for name, value in first.items() if abs(float(value.mean())) > 0.25 * float(value.std()) + 1e-6
    }
    if aside:
        name, value = next(iter(aside.items()))
        mean = f"{float(value.mean()):.2g}"
        if float(value.std()) < 1e-6 * abs(float(value.mean())):
            return (
                name,
                f"all entries of {name} are initialised to {mean}: what is equal gets equal gradients, and stays so",
            )
        return name, f"{name} is initialised with mean {mean} instead of zero"
    larger = dataclasses.replace(case.sizes, d_model=2 * case.sizes.d_model, d_ff=2 * case.sizes.d_ff)
    try:
        second = _matrices(case.build(sizes=larger, filled=True).values())
        second = {name: value for name, value in second.items() if name not in norms}
    except LearnerError:
        second = {}
    if loud:
        name, value = next(iter(loud.items()))
        size = float(value.std())
        if name in second and float(second[name].std()) < 0.85 * size:
            return "", ""  # it decreases with the width
        usual = f"1/sqrt(d_model) is {case.sizes.d_model**-0.5:.2g}"
        return name, f"{name} has an initial standard deviation of {size:.2g}; {usual}"
    spread = [name for name, value in first.items() if value.dim() == 2 and (not second or name in second)]
    alike = [name for name in spread if _is_variance(first[name]) and (not second or _is_variance(second[name]))]
    if together := _most_or_a_sublayer({name: first[name] for name in spread}, alike):
        name, value = together[0], first[together[0]]
        return (
            name,
            f"{_list(together)}: initialised with standard deviation {float(value.std()):.3f}, which is "
            f"2/(d_in + d_out): that is the variance, and its root is {(2 / sum(value.shape)) ** 0.5:.3f}",
        )
    return _fading(first, second)


def _fading(first: dict[str, Tensor], second: dict[str, Tensor]) -> tuple[str, str]:
    """A matrix and what is wrong if matrices are far too small at usual widths, extrapolated from two widths."""
    plain = [name for name, value in first.items() if value.dim() == 2 and name in second and float(value.std())]
    small: dict[str, tuple[float, float, float]] = {}
    for name in plain:
        at_first, at_second = float(first[name].std()), float(second[name].std())
        there = at_second * (at_second / at_first) ** math.log2(WIDE / max(second[name].shape))
        if there < FAINT * WIDE**-0.5:
            small[name] = at_first, at_second, there
    together = _most_or_a_sublayer({name: first[name] for name in plain}, list(small))
    if not together:
        return "", ""
    name = together[0]
    at_first, at_second, there = small[name]
    return (
        name,
        f"{name} has an initial standard deviation of {at_first:.3f}, {at_second:.3f} at twice the width, and so "
        f"about {there:.1g} at a width of {WIDE}, where 1/sqrt(d_in) is {WIDE**-0.5:.2g}: it decreases too fast",
    )


def _matrices(values: Raw) -> dict[str, Tensor]:
    return {
        name: value.double()
        for name, value in values.items()
        if sum(size > 1 for size in value.shape) > 1 and value.numel() >= FEWEST and torch.isfinite(value).all()
    }


def _is_norm_over_positions(case: Case, name: str, value: Tensor) -> bool:
    """Whether it is a norm's weight of shape (max_seq_len, d_model), which begins at one."""
    shape = (case.arguments.get("max_seq_len", USUAL["max_seq_len"]), case.sizes.d_model)
    called = f"{name} {case.classes.get(name, '')}"
    return tuple(value.shape) == shape and bool((value == 1).all()) and NORM.search(called) is not None


def _most_or_a_sublayer(matrices: Mapping[str, Tensor], odd: list[str]) -> list[str]:
    """The odd ones among matrices if they are most of them, or all of one sublayer; an empty list otherwise.

    Matrices of a sublayer have the same two sizes. One alone, such as a last projection, may be smaller on purpose.
    """
    if 2 * len(odd) > len(matrices):
        return odd
    for name in odd:
        sizes = {*matrices[name].shape}
        sublayer = [other for other, value in matrices.items() if {*value.shape} == sizes]
        if len(sublayer) >= FEWEST_ALIKE[len(sizes)] and {*sublayer} <= {*odd}:
            return sublayer
    return []


def _is_variance(matrix: Tensor) -> bool:
    """Whether the standard deviation is 2 / (d_in + d_out), or slightly less for a truncated normal."""
    return 0.93 < float(matrix.std()) * sum(matrix.shape) / 2 < 1.06


def widths(case: Case) -> None:
    """Compare the feed-forward's width with the one that was requested."""
    assert case.explanation is not None
    own = _own_name(case)
    down = case.explanation.reading.get("down")
    if down is None or own is None:
        return
    width = down.read(case.raw).shape[-1]
    if width == case.sizes.d_ff:
        return
    case.report.conventions["d_ff"] = f"{width} for {own}={case.sizes.d_ff}"
    gate, up = (case.explanation.reading.get(role) for role in ("gate", "up"))
    if gate is not None and up is not None and gate.parameters == up.parameters and 2 * width == case.sizes.d_ff:
        case.report.conventions["d_ff"] += ": the width of gate and up together"
    elif (own in WIDTH_NAMES or _is_unused(case)) and not _in_multiples(case, down, width):
        case.report.found("d_ff_ignored", f"{own}={case.sizes.d_ff} gives a width of {width}")


def _is_unused(case: Case) -> bool:
    """Whether an argument of the constructor itself changes no shape; an entry of a configuration may be for others."""
    handed = [one for one in case.learner.recipe.build.arguments if one.value == "d_ff" and one.is_there(frozenset())]
    if not handed or handed[0].guess:
        return False
    larger = dataclasses.replace(case.sizes, d_ff=LARGER * case.sizes.d_ff)  # for widths in multiples
    try:
        shapes = [
            [(one["name"], one["shape"]) for one in case.build(sizes=size).parameters] for size in (case.sizes, larger)
        ]
    except LearnerError:
        return False
    return shapes[0] == shapes[1]


def _in_multiples(case: Case, down: Piece, width: int) -> bool:
    """Whether Meta's rule gives this width, also for larger sizes: 8 * d_model may be a multiple of 256 by chance."""
    if width not in _multiples(case.sizes):
        return False
    sizes = dataclasses.replace(case.sizes, d_model=LARGER * case.sizes.d_model, d_ff=LARGER * case.sizes.d_ff)
    try:
        before, after = (_count(down, built) for built in (case.wide(), case.build(sizes=sizes)))
    except LearnerError:
        return True
    return not before or width * after // (LARGER * before) in _multiples(sizes)


def _count(piece: Piece, built: Built) -> int:
    return sum(math.prod(one["shape"]) for one in built.parameters if one["name"] in piece.parameters)


def _multiples(sizes: Sizes) -> set[int]:
    """The smallest multiples that are at least d_ff, 2/3 of d_ff, and 8/3 of d_model."""
    wanted = (sizes.d_ff, 2 * sizes.d_ff // 3, 8 * sizes.d_model // 3)
    return {-(-width // MULTIPLE) * MULTIPLE for width in wanted}


def _own_name(case: Case) -> str | None:
    """The name of d_ff in the constructor or configuration; None if it has no such argument."""
    line = case.learner.recipe.build
    argument = line.argument("d_ff")
    if argument is None or argument.name:
        return argument.name if argument else None
    place = next((place for place, one in enumerate(line.arguments) if one is argument), None)
    constructor = case.learner.made.get("constructor") or []
    return str(constructor[place]["name"]) if place is not None and place < len(constructor) else None


def norm_weights(case: Case) -> None:
    """The norms' weights must be initialised to one, or to zero if a norm multiplies by 1 + weight."""
    assert case.explanation is not None
    spec, reading = case.explanation.spec, case.explanation.reading
    if "no_norm" in case.report.findings:
        return  # the weights of a norm that is not used say nothing
    for role, weight in (("norm1", spec.weight1), ("norm2", spec.weight2)):
        piece = reading.get(role) if weight == "own" else None
        if piece is not None and set(piece.parameters) <= case.initial.keys():
            _norm_weight(case, f"{role}'s weight ({piece.parameters[0]})", piece.parameters[0], piece, spec.plus_one)
    _check_norm_weights(case, "0" if spec.plus_one else "1")


def weights_of_norms(case: Case, modules: Mapping[str, bool]) -> None:
    """The same for norms that are known by their modules alone. By weight: whether a norm multiplies by 1 + weight."""
    for name, plus_one in modules.items():
        if name in case.initial:
            _norm_weight(case, f"the norm's weight {name}", name, Piece((name,)), plus_one)
    if modules:
        _check_norm_weights(case, "1, or 0 where 1 is added")


def _norm_weight(case: Case, what: str, name: str, piece: Piece, plus_one: bool) -> None:
    value, right = piece.read(case.initial).double(), 0.0 if plus_one else 1.0
    mean, spread = float(value.mean()), float(value.std(correction=0))
    constant = spread < 1e-3
    if not torch.isfinite(value).all():
        return  # weights_uninitialised reports it
    if not constant or abs(mean - (1 - right)) < 1e-3:  # another constant is a choice
        case.report.found(
            "norm_weight_init",
            f"{what} is initialised with mean {mean:.2f}, standard deviation {spread:.2f}; it should be {right:g}",
        )
        _place(case, "norm_weight_init", name)


def _check_norm_weights(case: Case, right: str) -> None:
    good = "norm_weight_init" not in case.report.findings
    case.report.check("norm weights at the start", good, f"they are {right}" if good else f"they are not {right}")


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
