"""The line of a learner's code where a fault most likely is: a guess from its source, without running it."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from ..faults import CRASHES
from ..source.parse import MAX_TEXT, Function, Line, split
from ..verdict import Place
from .flow import SUBLAYERS
from .line_patterns import ASSIGNED, INITIAL, LOOKS, Look
from .lines import not_built, read
from .origin import origin
from .roles import NAMES, role_of

MAX_CODE = 200  # characters of a line that are shown


def place(
    id: str,
    source: str,
    file: str,
    name: str,
    *,
    error: Mapping[str, Any] | None = None,
    evidence: str = "",
    hints: Sequence[str] = (),
    owner: str = "",
    used: Collection[str] = (),
    passed: Sequence[int] = (),
    made_of: Collection[str] = (),
) -> Place | None:
    """The line where the fault `id` most likely is; None if no line stands out. Nothing is run or raised.

    name: the class or factory under test. error: what the driver says of an exception; its innermost frame in the
    file is the place of a crash. evidence: what the finding says, which may be of one sublayer alone.
    hints: names of parameters that the finding speaks of, such as "ffn.w1.weight";
    owner: the class of the module that holds the first of them. used: what else builds or calls it, such as a function
    that makes tables. passed: the lines through which an error came that is due to what an earlier line made.
    made_of: the classes of the block's modules, with those that they inherit from; empty if that is not known.
    """
    number = None
    lines = split(source)
    other = _other_sublayer(evidence) if id in OF_SUBLAYERS else ""
    try:
        if id in TOLD and error is not None:
            number = _innermost(error, file)
        if number is None:
            text = "\n".join(lines)
            functions = _spoken_of(read(text, name, used), {name.partition(".")[0], *used})
            if id == "timeout" and evidence:
                at_import = "import" in evidence
                functions = [one for one in functions if (one.name in ("module", "class")) == at_import]
            number = origin(functions, passed)
            if number is None:
                left_out = not_built(text, made_of) - {*used}
                built = [one for one in functions if one.owner not in left_out]
                number = _searched(id, lines, _without(other, built), hints, owner) if other else None
                number = number or _searched(id, lines, built, hints, owner)
            if number is None:  # a class may be built in forward
                number = _searched(id, lines, functions, hints, owner)
    except SyntaxError as mistake:
        number = mistake.lineno if id == "import_error" else None
    except (ValueError, RecursionError, MemoryError):  # from the parser, or because the code is nested too deeply
        return None
    if number is None or not 1 <= number <= len(lines):
        return None
    return Place(file=file, line=number, code=lines[number - 1].strip()[:MAX_CODE])


OF_WEIGHTS = ("weight_init_scale", "norm_weight_init", "weights_uninitialised")
"""Faults of initialisation: they lie in the class that holds the weight, or in a function outside of classes."""

OF_CHANCE = ("dropout_in_eval", "not_deterministic")
"""Faults whose line draws random numbers."""

TOLD = CRASHES | {"wrong_dtype", "backward_error", "arguments_unknown", *OF_WEIGHTS, *OF_CHANCE}
"""Faults whose error, or whose trace, has the line."""
OF_NORMS = (
    "eps_ignored",
    "wrong_eps",
    "eps_outside_sqrt",
    "norm_without_upcast",
    "norm_without_sqrt",
    "norm_wrong_mean",
)
"""Faults in a norm: other classes of norms are left out where its own is known."""

NOT_REACHED = ("wrong_dtype", "wrong_device_buffer")
"""Faults of a weight that an argument of the constructor does not reach: the lines that make it."""

OF_SUBLAYERS = ("post_norm", "no_norm", "residual_from_normed", "residual_detached", "doubled_residual")
"""Faults that a block may have in one of its two sublayers, or in both."""

HINTED = (
    *("gradient_missing", "gradient_wrong", "unexpected_bias", "missing_bias", "no_norm", "norm_weight_missing"),
    *NOT_REACHED,
)
"""Faults of one weight: lines that name it come first."""

ASIDE = re.compile(r"hook|state_dict|repr_*$|pretrained|optimizer|flops")
"""Methods that have no part in a forward pass."""


def _innermost(error: Mapping[str, Any], file: str) -> int | None:
    """The line of the innermost frame in the learner's file."""
    frames = [frame for frame in reversed(error.get("frames") or ()) if isinstance(frame.get("line"), int)]
    same = [frame for frame in frames if str(frame.get("file")) == file]
    # The code may have run under another path than the reported one.
    alike = [frame for frame in frames if PurePath(str(frame.get("file"))).name == PurePath(file).name]
    return next((int(frame["line"]) for frame in same or alike), None)


def _other_sublayer(evidence: str) -> str:
    """The sublayer that an evidence does not speak of, if it speaks of one alone: attention or ffn."""
    first = re.search(r"\battention\b|\bnorm1\b|\bfirst residual", evidence)
    second = re.search(r"\bfeed-forward\b|\bnorm2\b|\bsecond residual", evidence)
    if (first is None) == (second is None):
        return ""
    return "attention" if first is None else "ffn"


def _without(sublayer: str, functions: Sequence[Function]) -> list[Function]:
    """The functions without what belongs to this sublayer alone."""
    own = {f"of {one}" for one in SUBLAYERS} - {f"of {sublayer}"}
    return [
        replace(one, lines=[line for line in one.lines if f"of {sublayer}" not in line.kinds or line.kinds & own])
        for one in functions
    ]


def _searched(
    id: str, lines: Sequence[str], functions: Sequence[Function], hints: Sequence[str], owner: str
) -> int | None:
    if id in OF_WEIGHTS and owner:
        own = [function for function in functions if function.owner == owner]
        number = _first([*LOOKS[id], *INITIAL], own, lines)
        if number is not None:
            return number
        functions = [one for one in functions if one.owner in (owner, "")]  # no other class's weight
    if id in OF_NORMS and owner:
        functions = [one for one in functions if one.owner == owner or role_of(one.owner) != "norm"]
    looks = LOOKS.get(id, ())
    if id in NOT_REACHED:
        looks = [look for look in looks if "init" in look.where.split()]
    for hint in hints if id in HINTED else ():
        for part in reversed(hint.split(".")):  # w1 is more specific than ffn
            if part.isidentifier() and part not in ("weight", "bias"):
                number = _first(looks, functions, lines, rf"\b{part}\b")
                if number is not None:
                    return number
    number = _first(LOOKS.get(id, ()), functions, lines)
    if number is None and id in OF_WEIGHTS and hints:
        own = [function for function in functions if function.owner == owner or not owner]
        number = _first(ASSIGNED, own, lines, rf"\b{hints[0].rpartition('.')[2]}\b")
    return number


def _spoken_of(functions: Sequence[Function], used: Collection[str]) -> list[Function]:
    """The functions without those that nothing calls, or no forward pass. used: those that are called from outside.

    A class without a forward inherits it, perhaps from another file: that calls its methods.
    """
    words = [
        {word for line in one.lines if not line.text.startswith("def ") for word in re.findall(r"\w+", line.text)}
        for one in functions
    ]
    kept = {*used, "forward", "class", "module", "reset_parameters"}
    with_forward = {one.owner for one in functions if one.name == "forward"}
    return [
        function
        for number, function in enumerate(functions)
        if not ASIDE.search(function.name)
        and (
            function.name in kept
            or (function.owner and function.owner not in with_forward)
            or function.name.startswith("__")
            or any(function.name in said for other, said in enumerate(words) if other != number)
        )
    ]


def _first(
    looks: Sequence[Look], functions: Sequence[Function], lines: Sequence[str], mentions: str = ""
) -> int | None:
    for look in looks:
        roles = set(look.where.split())
        # A function with a single role is a better match than one with several.
        ordered = (
            sorted(functions, key=lambda one: len(one.roles & NAMES.keys())) if roles <= NAMES.keys() else functions
        )
        for function in ordered:
            if "any" not in roles and not function.roles & roles:
                continue
            found = [line for line in function.lines if look.fits(line) and re.search(mentions, line.text)]
            if found:
                return _exact(found[-1 if look.last else 0], look, lines)
    return None


def _exact(line: Line, look: Look, lines: Sequence[str]) -> int:
    """The line of a statement over several lines that matches by itself."""
    if look.has and not look.has.startswith("^"):
        for number in range(line.number, min(line.end, len(lines)) + 1):
            if re.search(look.has, lines[number - 1][:MAX_TEXT]):
                return number
    return line.number
