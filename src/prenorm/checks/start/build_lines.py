"""Candidates for the line that builds a block, from the names of arguments and what the file defines.

No class is known by its name. start.py tries the candidates.
"""

import ast
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ..subject.child import meanings
from ..subject.child.meanings import meaning_of
from ..subject.child.names import WRITTEN
from ..subject.raised import Description
from ..subject.recipe import Argument, Line, products
from . import rotations

SIZES = ("d_model", "num_heads", "d_ff")
MOST = 60
OF_INPUTS, OF_OUTPUTS = re.compile(r"^in(put)?_|_in$"), re.compile(r"^out(put)?_|_out$")
MOST_PARTS = 6  # of those that may be handed in for one argument
IN_CONFIGURATIONS = {*meanings.SIZES, "kv_repeats", "rope_theta", "eps", "dropout", "expansion"}
"""Entries that a configuration gets even if it has defaults."""
PLAIN = {"bool": "False", "int": "1", "float": "0.0", "str": "''"}
CHOSEN = {"activation": ("silu", "swish", "swiglu"), "off": ("none", "no"), None: ("rms", "rmsnorm", "rope")}
"""What is chosen of a Literal, by what its name means."""
OF_ROTATIONS = ("max_seq_len", "rope_theta")
"""Numbers of a rotation, such as rope_max_seq_len: blocks may rotate only if those that are None are given."""
WEIGHTED = "weighted"
"""What makes a block of a function that takes weights (see child/weighted.py)."""
TIMES = "4"
"""How often d_model goes into the width, where the ratio must be an integer."""
NEVER_DEFAULT = frozenset(["num_kv_heads", "dtype"])
"""Passed even where they have a default: it is that of the author's sizes, or of the author's GPU."""


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
    others = [one for one in named if one["required"] and one["name"] not in understood and not _is_weights(one)]
    lacking = [one for one in others if not _is_config(one, made)]
    by_name = (Line(name, chosen) for chosen in _chosen([_options(one, meant, made) for one in named]))
    by_place = _by_place(name, named, meant, made)
    spread = any(one["kind"] == "VAR_POSITIONAL" for one in parameters)
    if spread and not known & {*SIZES} and not any(one["kind"].startswith("POSITIONAL") for one in parameters):
        sizes = tuple(Argument("", size, guess=True) for size in SIZES)
        by_name = (Line(name, (*sizes, *line.arguments)) for line in by_name)
    if {*SIZES} <= known or any(_is_config(one, made) or _parts(one, made) for one in named):
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
    helper, there = _helper(line.callee, made, "configuration"), {one.name for one in inner}
    kept = [
        Argument(one["name"], str(one["default"] * factor), True)
        for one in (helper["parameters"] or () if helper is not None else ())
        if type(one["default"]) is int and one["name"] not in there and meaning_of(one["name"], loosely=True) is None
    ]
    return replace(line, arguments=(*inner, *kept))


def optional(line: Line, made: Description) -> list[str]:
    """Arguments of the line, also of a configuration in it, whose defaults should do: None, and settings."""
    helper = _helper(line.callee, made, "configuration")
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
        and _may_mean(meaning, one)
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
    first, rest = named[:3], named[3:]
    if len(first) < 3 or any(one["kind"] == "KEYWORD_ONLY" for one in first):
        return
    if any(_is_config(one, made) or _is_weights(one) for one in first):
        return
    said = [meant.get(one["name"]) or meaning_of(one["name"], loosely=True) for one in first]
    if any(meaning not in (None, size) for meaning, size in zip(said, SIZES, strict=True)):
        return
    sizes = tuple(Argument("", size, guess=meaning is None) for meaning, size in zip(said, SIZES, strict=True))
    for chosen in _chosen([_options(one, meant, made) for one in rest]):
        yield Line(name, (*sizes, *chosen))


def _options(one: Description, meant: Mapping[str, str], made: Description) -> list[tuple[Argument, ...]]:
    """The possible values of a constructor's parameter, each as no argument or one."""
    name, meaning = one["name"], meant.get(one["name"])
    own = "" if one["kind"] == "POSITIONAL_ONLY" else name
    omitted: list[tuple[Argument, ...]] = [] if one["required"] else [()]
    if _is_plain_object(one, made):
        return [(Argument(own, f"{one['annotation']}()", True),), *omitted]
    if _is_weights(one):
        return [(Argument(own, "weights", True),)]
    if _is_config(one, made):
        annotated = _helper(one["annotation"], made, "configuration") is not None
        found: list[tuple[Argument, ...]] = [
            (Argument(own, line, True, guess=annotated and line.callee not in (one["annotation"], "config")),)
            for line in _configs(one, made)
        ]
        return [*found, *omitted]
    if meaning is not None:
        needed = one["required"] or (meaning in NEVER_DEFAULT and one["default"] not in (None, "torch.float32"))
        return [(Argument(own, WRITTEN[meaning], needed, one["default"]),)]
    loose = meaning_of(name, loosely=True)
    if _is_too_small(one):
        return [(Argument(own, WRITTEN[loose or ""], True),)]
    if loose in OF_ROTATIONS and one["default"] is None:
        return [(Argument(own, WRITTEN[loose], True),), *omitted]
    if loose in ("num_heads", "head_dim") and type(one["default"]) is int and loose not in meant.values():
        return [(Argument(own, WRITTEN[loose], True, one["default"]),)]
    if loose == "expansion" and one["default"] == 1:  # the matrices of a feed-forward as wide as d_model look alike
        return [(Argument(own, TIMES, True),), *omitted]
    if _is_of_the_design(one):
        return [(Argument(own, "True"),), *omitted]
    if meanings.COS.search(name) or meanings.SIN.search(name):
        which = 0 if meanings.COS.search(name) else 1
        helped = [f"{line.written()}[{which}]" for line in rotations.table_functions(made)]
        return [(Argument(own, value, True),) for value in (*helped, ("cos", "sin")[which])] + omitted
    if parts := _parts(one, made):
        return [(Argument(own, part, True, guess=len(parts) > 1),) for part in parts]
    rotates = meanings.ROPE.search(name) or _helper(one["annotation"], made, "class") is not None
    if rotates and one["default"] is None and not (one["annotation"] in PLAIN or _choices(one)):
        modules = [
            Argument(own, line, True, guess=line.callee != one["annotation"]) for line in rotations.modules(made)
        ]
        tables = [Argument(own, line.written(), True) for line in rotations.table_functions(made)]
        complex_first = re.search("freq|cis", name)
        values = [*tables, *modules, Argument(own, "freqs_cis", True)] if complex_first else [*modules, *tables]
        return [(value,) for value in values] + (omitted or [(Argument(own, "None", True),)])
    if not one["required"]:
        handed: list[tuple[Argument, ...]] = [(Argument(own, WRITTEN.get(loose or "", ""), one["default"] is None),)]
        if loose == "dropout" and _is_probability(one):  # whether it drops in eval mode, shows only if asked
            return handed if one["default"] is not None else [*handed, *omitted]
        if one["default"] is None and loose in ("dropout", "eps"):  # None is not a number
            return [*omitted, *handed]
        return omitted
    if _helper(one["annotation"], made, "enumeration") is not None:
        return [(Argument(own, f"[*{one['annotation']}][0]", True, guess=True),)]
    return [(_required(own, one),)]


def _required(own: str, one: Description) -> Argument:
    """A required argument that is no part of a block as such: its annotation counts before its name."""
    meaning = meaning_of(one["name"], loosely=True)
    if choices := _choices(one):
        likely = [choice for choice in CHOSEN.get(meaning, ()) if choice in choices]
        return Argument(own, repr((*likely, *choices)[0]), True)
    value = WRITTEN.get(meaning or "") if _may_mean(meaning, one) else None
    if meaning == "expansion" and _is_integer(one):
        value = TIMES
    if one["annotation"] == "bool":
        return Argument(own, value if value in ("True", "False", "causal") else "False", True)
    if value == "None" and one["annotation"] in PLAIN:  # the size of a cache
        value = None
    return Argument(own, value or PLAIN.get(one["annotation"], "None"), True, guess=value is None)


def _is_integer(one: Description) -> bool:
    return one["annotation"] == "int" or type(one["default"]) is int


def _may_mean(meaning: str | None, one: Description) -> bool:
    """Whether its annotation allows that meaning: a size is no bool, text or Literal."""
    return meaning not in meanings.SIZES or not (one["annotation"] in ("bool", "str") or _choices(one))


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


def _choices(one: Description) -> tuple[object, ...]:
    """The values that a Literal allows."""
    found = re.match(r"(?:\w+\.)*Literal\[(.*)\]$", one["annotation"])
    try:
        return ast.literal_eval(f"({found[1]},)") if found else ()
    except (ValueError, SyntaxError):
        return ()


def _is_too_small(one: Description) -> bool:
    """Whether it is the largest batch of a cache, or a window, and by default less than what the checks use."""
    small = one["required"] or (type(one["default"]) is int and 0 < one["default"] < int(WRITTEN["max_batch"]))
    return small and meaning_of(one["name"], loosely=True) in ("max_batch", "window")


def _is_probability(one: Description) -> bool:
    """Whether its default is a number that dropout may have, or None where nothing says that it is a module."""
    default = one["default"]
    if default is None:
        return re.search(r"^$|float|int|Any", one["annotation"]) is not None
    return isinstance(default, int | float) and not isinstance(default, bool) and 0 <= default < 1


def _is_of_the_design(one: Description) -> bool:
    """Whether it is a switch for the rotation or the scale of scores, which Llama's design has."""
    switch = isinstance(one["default"], bool) or one["annotation"] == "bool"
    return switch and any(flag.search(one["name"]) for flag in (meanings.ROPE_FLAG, meanings.SCALE_FLAG))


def _is_config(one: Description, made: Description) -> bool:
    modules = [meanings.ROPE, *(re.compile(named, re.I) for named, _ in meanings.PARTS.values())]
    return (
        (one["settings"] and not any(pattern.search(one["name"]) for pattern in modules))
        or bool(meanings.CONFIG.search(one["name"]))
        or _helper(one["annotation"], made, "configuration") is not None
    )


def _is_weights(one: Description) -> bool:
    """Whether it is a dictionary of weights that the constructor needs."""
    named = meanings.WEIGHTS.search(one["name"]) and not meanings.CONFIG.search(one["name"])
    return bool(one["required"] and named and re.search("^$|dict|mapping", one["annotation"], re.I))


def _is_plain_object(one: Description, made: Description) -> bool:
    """Whether its annotation is a class of the file that needs no arguments and has no sizes, such as a cache."""
    helper = _helper(one["annotation"], made, "configuration")
    if helper is None or meanings.CONFIG.search(one["name"]) or meanings.CONFIG_CLASS.search(helper["name"]):
        return False
    parameters = helper["parameters"] or ()
    return not any(inner["required"] or meaning_of(inner["name"]) in SIZES for inner in parameters)


def _helper(name: str, made: Description, kind: str) -> Description | None:
    return next((one for one in made["helpers"] if one["name"] == name and one["kind"] == kind), None)


def _configs(one: Description, made: Description) -> Iterator[Line]:
    """Configurations: the annotated class, similar classes, and the checker's own."""
    annotated = _helper(one["annotation"], made, "configuration")
    others = [helper for helper in made["helpers"] if helper["kind"] == "configuration" and helper is not annotated]
    for helper in [annotated] * (annotated is not None) + others:
        assert helper is not None
        arguments = tuple(_settings(helper["parameters"] or ()))
        if {"d_model", "num_heads"} <= {argument.value for argument in arguments}:
            yield Line(helper["name"], arguments, keep="config")
            if helper["of_transformers"]:  # a model sets it before it makes its layers
                attention = Argument("attn_implementation", "'eager'", True)
                yield Line(helper["name"], (*arguments, attention), keep="config")
        elif not any(parameter["required"] for parameter in helper["parameters"] or ()):
            yield Line("config", (Argument("", f"{helper['name']}()"),), keep="config")
    yield Line("config", keep="config")


def _settings(parameters: Sequence[Description]) -> Iterator[Argument]:
    names = [one["name"] for one in parameters]
    for one in parameters:
        if one["kind"].startswith("VAR_"):
            continue
        meaning = meaning_of(one["name"], loosely=True)
        if meaning == "rope_theta" and meaning_of(one["name"]) is None and not one["required"]:
            continue  # for other layers
        if meaning == "num_kv_heads" and meanings.counts_repeats(one["name"], names):
            meaning = "kv_repeats"
        if meaning in IN_CONFIGURATIONS and not isinstance(one["default"], bool) and _may_mean(meaning, one):
            needed = one["required"] or (meaning in NEVER_DEFAULT and one["default"] not in (None, "torch.float32"))
            value = TIMES if meaning == "expansion" and _is_integer(one) else WRITTEN[meaning]
            yield Argument(one["name"], value, needed, one["default"])
        elif _is_too_small(one):
            yield Argument(one["name"], WRITTEN[meaning or ""], True)
        elif _is_of_the_design(one):
            yield Argument(one["name"], "True")  # as in Llama's design
        elif one["required"]:
            yield _required(one["name"], one)
