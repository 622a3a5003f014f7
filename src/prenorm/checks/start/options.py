"""The possible values of one argument of a constructor, or of a configuration that it takes."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence

from ..subject.child import meanings
from ..subject.child.meanings import meaning_of
from ..subject.child.names import WRITTEN
from ..subject.raised import Description
from ..subject.recipe import Argument, Line
from . import rotations

SIZES = ("d_model", "num_heads", "d_ff")
IN_CONFIGURATIONS = {*meanings.SIZES, "kv_repeats", "rope_theta", "eps", "dropout", "expansion"}
"""Entries that a configuration gets even if it has defaults."""
PLAIN = {"bool": "False", "int": "1", "float": "0.0", "str": "''"}
CHOSEN = {"activation": ("silu", "swish", "swiglu"), "off": ("none", "no"), None: ("rms", "rmsnorm", "rope")}
"""What is chosen of a Literal, by what its name means."""
OF_ROTATIONS = ("max_seq_len", "rope_theta")
"""Numbers of a rotation, such as rope_max_seq_len: blocks may rotate only if those that are None are given."""
TIMES = "4"
"""How often d_model goes into the width, where the ratio must be an integer."""
NEVER_DEFAULT = frozenset(["num_kv_heads", "dtype"])
"""Passed even where they have a default: it is that of the author's sizes, or of the author's GPU."""


def options(
    one: Description, meant: Mapping[str, str], made: Description, parts: Sequence[Line]
) -> list[tuple[Argument, ...]]:
    """The possible values of a constructor's parameter, each as no argument or one. parts: lines that make modules."""
    name, meaning = one["name"], meant.get(one["name"])
    own = "" if one["kind"] == "POSITIONAL_ONLY" else name
    omitted: list[tuple[Argument, ...]] = [] if one["required"] else [()]
    if _is_plain_object(one, made):
        return [(Argument(own, f"{one['annotation']}()", True),), *omitted]
    if is_weights(one):
        return [(Argument(own, "weights", True),)]
    if is_config(one, made):
        annotated = helper_of(one["annotation"], made, "configuration") is not None
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
    if parts:
        return [(Argument(own, part, True, guess=len(parts) > 1),) for part in parts]
    rotates = meanings.ROPE.search(name) or helper_of(one["annotation"], made, "class") is not None
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
    if helper_of(one["annotation"], made, "enumeration") is not None:
        return [(Argument(own, f"[*{one['annotation']}][0]", True, guess=True),)]
    return [(_required(own, one),)]


def _required(own: str, one: Description) -> Argument:
    """A required argument that is no part of a block as such: its annotation counts before its name."""
    meaning = meaning_of(one["name"], loosely=True)
    if choices := _choices(one):
        likely = [choice for choice in CHOSEN.get(meaning, ()) if choice in choices]
        return Argument(own, repr((*likely, *choices)[0]), True)
    value = WRITTEN.get(meaning or "") if may_mean(meaning, one) else None
    if meaning == "expansion" and _is_integer(one):
        value = TIMES
    if one["annotation"] == "bool":
        return Argument(own, value if value in ("True", "False", "causal") else "False", True)
    if value == "None" and one["annotation"] in PLAIN:  # the size of a cache
        value = None
    return Argument(own, value or PLAIN.get(one["annotation"], "None"), True, guess=value is None)


def _is_integer(one: Description) -> bool:
    return one["annotation"] == "int" or type(one["default"]) is int


def may_mean(meaning: str | None, one: Description) -> bool:
    """Whether its annotation allows that meaning: a size is no bool, text or Literal."""
    return meaning not in meanings.SIZES or not (one["annotation"] in ("bool", "str") or _choices(one))


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


def is_config(one: Description, made: Description) -> bool:
    modules = [meanings.ROPE, *(re.compile(named, re.I) for named, _ in meanings.PARTS.values())]
    return (
        (one["settings"] and not any(pattern.search(one["name"]) for pattern in modules))
        or bool(meanings.CONFIG.search(one["name"]))
        or helper_of(one["annotation"], made, "configuration") is not None
    )


def is_weights(one: Description) -> bool:
    """Whether it is a dictionary of weights that the constructor needs."""
    named = meanings.WEIGHTS.search(one["name"]) and not meanings.CONFIG.search(one["name"])
    return bool(one["required"] and named and re.search("^$|dict|mapping", one["annotation"], re.I))


def _is_plain_object(one: Description, made: Description) -> bool:
    """Whether its annotation is a class of the file that needs no arguments and has no sizes, such as a cache."""
    helper = helper_of(one["annotation"], made, "configuration")
    if helper is None or meanings.CONFIG.search(one["name"]) or meanings.CONFIG_CLASS.search(helper["name"]):
        return False
    parameters = helper["parameters"] or ()
    return not any(inner["required"] or meaning_of(inner["name"]) in SIZES for inner in parameters)


def helper_of(name: str, made: Description, kind: str) -> Description | None:
    return next((one for one in made["helpers"] if one["name"] == name and one["kind"] == kind), None)


def _configs(one: Description, made: Description) -> Iterator[Line]:
    """Configurations: the annotated class, similar classes, and the checker's own."""
    annotated = helper_of(one["annotation"], made, "configuration")
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
        if meaning in IN_CONFIGURATIONS and not isinstance(one["default"], bool) and may_mean(meaning, one):
            needed = one["required"] or (meaning in NEVER_DEFAULT and one["default"] not in (None, "torch.float32"))
            value = TIMES if meaning == "expansion" and _is_integer(one) else WRITTEN[meaning]
            yield Argument(one["name"], value, needed, one["default"])
        elif _is_too_small(one):
            yield Argument(one["name"], WRITTEN[meaning or ""], True)
        elif _is_of_the_design(one):
            yield Argument(one["name"], "True")  # as in Llama's design
        elif one["required"]:
            yield _required(one["name"], one)
