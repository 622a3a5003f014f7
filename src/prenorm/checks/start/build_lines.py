"""Candidates for the line that builds a block, from the names of arguments and what the file defines.

No class is known by its name. start.py tries the candidates.
"""

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from ..subject.child import meanings
from ..subject.child.meanings import meaning_of
from ..subject.child.names import WRITTEN
from ..subject.raised import Description
from ..subject.recipe import Argument, Line, products
from .options import PLAIN, SIZES, helper_of, is_config, is_weights, may_mean, options

MOST = 60
OF_INPUTS, OF_OUTPUTS = re.compile(r"^in(put)?_|_in$"), re.compile(r"^out(put)?_|_out$")
MOST_PARTS = 6  # of those that may be handed in for one argument
WEIGHTED = "weighted"
"""What makes a block of a function that takes weights (see child/weighted.py)."""


def builds(made: Description) -> Iterator[Line]:
    """Lines that may build the block, the likeliest first. made: the driver's reply to "load"."""
    name, parameters = made["name"], made["constructor"]
    if parameters is None:
        yield Line(name, tuple(Argument("", size, guess=True) for size in SIZES))
        return
    own = [one for one in parameters if not one.get("handed_up")]
    if len(own) < len(parameters):
        if not {*SIZES} <= set(_meanings(own).values()):  # otherwise **kwargs may be for anything
            yield from builds({**made, "constructor": [{**one, "handed_up": False} for one in parameters]})
        yield from builds({**made, "constructor": own})
        return
    named = [one for one in parameters if not one["kind"].startswith("VAR_")]
    meant = _meanings(named)
    if takes_weights(made):
        settings = [Argument(own, WRITTEN[meaning]) for own, meaning in meant.items()]
        yield Line(WEIGHTED, (Argument("", name), *settings))
        return
    known = set(meant.values())
    # A third argument that is a ratio, such as mlp_ratio, is no d_ff.
    understood = {*meant, *(one["name"] for one in named if meaning_of(one["name"], loosely=True) == "expansion")}
    others = [one for one in named if one["required"] and one["name"] not in understood and not is_weights(one)]
    lacking = [one for one in others if not is_config(one, made)]
    by_name = (
        Line(name, chosen) for chosen in _chosen([options(one, meant, made, _parts(one, made)) for one in named])
    )
    by_place = _by_place(name, named, meant, made)
    spread = any(one["kind"] == "VAR_POSITIONAL" for one in parameters)
    if spread and not known & {*SIZES} and not any(one["kind"].startswith("POSITIONAL") for one in parameters):
        sizes = tuple(Argument("", size, guess=True) for size in SIZES)
        by_name = (Line(name, (*sizes, *line.arguments)) for line in by_name)
    if {*SIZES} <= known or any(is_config(one, made) or _parts(one, made) for one in named):
        yield from by_name
    elif {"d_model", "num_heads"} <= known and not lacking:
        yield from itertools.chain(by_name, by_place)
    else:
        yield from itertools.chain(by_place, by_name)


def takes_weights(made: Description) -> bool:
    """Whether it is a function that computes a block's output from an input and a dictionary of weights."""
    required = [one["name"] for one in made["constructor"] or () if one["required"]]
    named = all(any(map(pattern.search, required)) for pattern in (meanings.INPUT, meanings.WEIGHTS))
    return not made["is_class"] and named


def builds_of_file(made: Description) -> Iterator[Line]:
    """The same for a file that has sizes of its own, such as n_embd = 384: they are set to those that are asked for."""
    if made["numbers"]:
        numbers = ", ".join(f"{name}={WRITTEN[meaning]}" for name, meaning in made["numbers"].items())
        for line in builds(made):
            yield replace(line, callee=f"changed({numbers}).{line.callee}")


def builds_with_a_switch(made: Description) -> Iterator[Line]:
    """The likeliest line with one switch that is not as by default, such as the use of a package that is missing."""
    line = next(builds(made), None)
    there = set() if line is None else {one.name for one in line.arguments}
    for one in made["constructor"] or ():
        if line is not None and isinstance(one["default"], bool) and one["name"] not in there:
            switch = Argument(one["name"], str(not one["default"]), True, guess=True)
            yield replace(line, arguments=(*line.arguments, switch))


def with_defaults(line: Line, made: Description, factor: int = 1) -> Line:
    """The line, with whole numbers of unknown names that a configuration keeps as they are, times a factor."""
    inner = [
        replace(one, value=with_defaults(one.value, made, factor)) if isinstance(one.value, Line) else one
        for one in line.arguments
    ]
    helper, there = helper_of(line.callee, made, "configuration"), {one.name for one in inner}
    kept = [
        Argument(one["name"], str(one["default"] * factor), True)
        for one in (helper["parameters"] or () if helper is not None else ())
        if type(one["default"]) is int and one["name"] not in there and meaning_of(one["name"], loosely=True) is None
    ]
    return replace(line, arguments=(*inner, *kept))


def optional(line: Line, made: Description) -> list[str]:
    """Arguments of the line, also of a configuration in it, whose defaults should do: None, and settings."""
    helper = helper_of(line.callee, made, "configuration")
    parameters = (
        made["constructor"] if line.callee == made["name"] else None if helper is None else helper["parameters"]
    )
    may = {one["name"] for one in parameters or () if not one["required"] and _should_do(one)}
    names = [one.name for one in line.arguments if one.name in may and one.is_there(frozenset())]
    return names + [name for one in line.arguments if isinstance(one.value, Line) for name in optional(one.value, made)]


def without(line: Line, names: Collection[str]) -> Line:
    """The line without these arguments."""
    inner = (
        replace(one, value=without(one.value, names)) if isinstance(one.value, Line) else one for one in line.arguments
    )
    return replace(line, arguments=tuple(one for one in inner if one.name not in names))


def _should_do(one: Description) -> bool:
    """Whether a default should do beside sizes that are not the author's."""
    meaning = meaning_of(one["name"], loosely=True)
    return one["default"] is None or meaning in ("rope_theta", "eps", "dropout", "expansion")


def _meanings(parameters: Sequence[Description]) -> dict[str, str]:
    """The meaning of each parameter, by its name; hidden_dim is d_model if nothing else is."""
    meant = {
        one["name"]: meaning
        for one in parameters
        if (meaning := meaning_of(one["name"])) is not None
        and (not isinstance(one["default"], bool) or meaning == "causal")
        and may_mean(meaning, one)
        and one["annotation"] not in ("nn.Module", "Module", "Callable", "type")
    }
    widths = [name for name, meaning in meant.items() if meaning == "d_model"]
    if len(widths) == 2 and "hidden_size" in widths and "d_ff" not in meant.values():
        meant["hidden_size"] = "d_ff"
    repeats = [name for name in meant if meanings.counts_repeats(name, meant)]
    inputs = [OF_INPUTS.sub("", name) for name, meaning in meant.items() if meaning == "d_model"]
    outputs = [one["name"] for one in parameters if OF_OUTPUTS.search(one["name"])]
    meant |= {name: "d_model" for name in outputs if OF_OUTPUTS.sub("", name) in inputs}  # the streams are added
    meant |= dict.fromkeys(repeats, "kv_repeats")
    inner = [name for name, meaning in meant.items() if meaning == "d_ff"]
    if "d_model" not in meant.values() and inner and re.match("(n_|d_)?hid", inner[0]):
        meant[inner[0]] = "d_model"
    return meant


def _chosen(options: Sequence[Sequence[tuple[Argument, ...]]]) -> Iterator[tuple[Argument, ...]]:
    for chosen in products(options, MOST):
        yield tuple(argument for slot in chosen for argument in slot)


def _by_place(name: str, named: Sequence[Description], meant: dict[str, str], made: Description) -> Iterator[Line]:
    """The sizes in their usual order: three of them, or two where no more are required."""
    needed = [one["required"] for one in named]
    for count in (3, 2):
        first, rest, sizes = named[:count], named[count:], SIZES[:count]
        if len(first) < count or (count == 2 and needed != [True, True, *[False] * len(rest)]):
            continue
        if any(one["kind"] == "KEYWORD_ONLY" or is_config(one, made) or is_weights(one) for one in first):
            continue
        if any(isinstance(one["default"], float | bool | str) for one in first):  # no size
            continue
        said = [meant.get(one["name"]) or meaning_of(one["name"], loosely=True) for one in first]
        if any(meaning not in (None, size) for meaning, size in zip(said, sizes, strict=True)):
            continue
        if count == 2 and not all(map(may_mean, sizes, first)):
            continue
        placed = tuple(Argument("", size, guess=meaning is None) for meaning, size in zip(said, sizes, strict=True))
        for chosen in _chosen([options(one, meant, made, _parts(one, made)) for one in rest]):
            yield Line(name, (*placed, *chosen))


def _parts(one: Description, made: Description) -> list[Line]:
    """Modules of the file that a block may be handed in this required argument, such as self_attn."""
    if not one["required"] or one["annotation"] in PLAIN or meaning_of(one["name"]) is not None:
        return []
    of = next((of for named, of in meanings.PARTS.values() if re.search(named, one["name"], re.I)), None)
    helpers = [helper for helper in made["helpers"] if helper["kind"] == "part" and of is not None]
    fitting = [helper for helper in helpers if re.search(of or "", helper["name"], re.I)]
    annotated = [helper for helper in fitting if helper["name"] == one["annotation"]]
    lines = []
    others = [helper for helper in made["helpers"] if helper["kind"] != "part"]  # a part may need a part as well
    for helper in annotated or fitting:
        alone = {"name": helper["name"], "constructor": helper["parameters"], "is_class": True, "helpers": others}
        likeliest = itertools.islice(builds({**made, **alone}), 2)
        lines += [replace(line, follows=True) for line in likeliest]
    return lines[:MOST_PARTS]
