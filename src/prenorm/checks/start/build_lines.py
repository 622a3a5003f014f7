"""Candidates for the lines that build and call a block, from the names of arguments and what the file defines.

No class is known by its name. start.py tries the candidates.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..subject.child import meanings
from ..subject.child.meanings import meaning_of
from ..subject.child.names import WRITTEN
from ..subject.recipe import Argument, Line, products

Description = Mapping[str, Any]
"""The driver's description of a parameter, a class or a function."""

SIZES = ("d_model", "num_heads", "d_ff")
MOST = 60  # candidates for each line
IN_CONFIGURATIONS = {*SIZES, "num_kv_heads", "head_dim", "max_seq_len", "rope_theta", "eps", "dropout", "expansion"}
"""Entries that a configuration gets even if it has defaults."""
PLAIN = {"bool": "False", "int": "1", "float": "0.0", "str": "''"}
OF_ROTATIONS = ("max_seq_len", "rope_theta")
"""Numbers of a rotation, such as rope_max_seq_len: blocks may rotate only if those that are None are given."""
NARROW = ("torch.bfloat16", "torch.float16")
"""Defaults that would round a file's own tables."""
OF_TABLES = ("theta", "max_seq_len", "head_dim", "config", "torch.float32")
"""Arguments that functions for tables get even if they have defaults."""
LAID_OUT = ("{0}", "torch.cat(({0}, {0}), -1)", "{0}.repeat_interleave(2, -1)")
"""A table with an entry per pair, or per dimension (halves, or neighbours)."""
DIMENSIONS = ("{}", "{}[None]", "{}[None, None]", "{}[None, :, None]")
"""The places of the axes of the batch and the heads."""
WEIGHTED = "weighted"
"""What makes a block of a function that takes weights (see child/weighted.py)."""
MASKS = ("mask", "added(mask)", "~mask", "mask[None, None]", "added(mask)[None, None]", "~mask[None, None]",
         "mask[None]", "added(mask)[None]")  # fmt: skip


BEFORE = re.compile(r"prefix|offset|start|num_(cls|special|register)", re.I)
"""Arguments that count positions in front of the first token."""


def builds(made: Description) -> Iterator[Line]:
    """Lines that may build the block, the likeliest first. made: the driver's reply to "load"."""
    name, parameters = made["name"], made["constructor"]
    if parameters is None:
        yield Line(name, tuple(Argument("", size) for size in SIZES))
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
    lacking = [one for one in named if one["required"] and one["name"] not in understood and not _is_config(one, made)]
    by_name = (Line(name, chosen) for chosen in _chosen([_options(one, meant, made) for one in named]))
    by_place = _by_place(name, named, meant, made)
    spread = any(one["kind"] == "VAR_POSITIONAL" for one in parameters)
    if spread and not known & {*SIZES} and not any(one["kind"].startswith("POSITIONAL") for one in parameters):
        sizes = tuple(Argument("", size) for size in SIZES)
        by_name = (Line(name, (*sizes, *line.arguments)) for line in by_name)
    if {*SIZES} <= known or any(_is_config(one, made) for one in named):
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


def calls(made: Description, forward: Sequence[Description] | None) -> Iterator[Line]:
    """Lines that may call the block, those with the fewest arguments first."""
    rest = [one for one in forward or () if not one["kind"].startswith("VAR_")][1:]
    slots: list[list[tuple[Argument, ...]]] = []
    skipped: set[str] = set()
    for number, one in enumerate(rest):
        if one["name"] in skipped:
            continue
        partner = rest[number + 1] if number + 1 < len(rest) else None
        if partner is not None and meanings.COS.search(one["name"]) and meanings.SIN.search(partner["name"]):
            skipped.add(partner["name"])
            slots.append(_pairs(one, partner, made))
        else:
            slots.append(_handed_in(one, made))
    for chosen in products(slots, MOST * 3):
        arguments = [argument for slot in chosen for argument in slot]
        yield Line("block", (Argument("", "x"), *_by_keyword(rest, arguments)))


def _by_keyword(rest: Sequence[Description], arguments: list[Argument]) -> Iterator[Argument]:
    """Arguments by name, unless they are positional only."""
    only_by_place = {one["name"] for one in rest if one["kind"] == "POSITIONAL_ONLY"}
    for one in arguments:
        yield Argument("" if one.name in only_by_place else one.name, one.value, one.needed, one.default)


def _meanings(parameters: Sequence[Description]) -> dict[str, str]:
    """The meaning of each parameter, by its name; hidden_dim is d_model if nothing else is."""
    meant = {
        one["name"]: meaning
        for one in parameters
        if (meaning := meaning_of(one["name"])) is not None
        and (not isinstance(one["default"], bool) or meaning == "causal")
        and one["annotation"] not in ("nn.Module", "Module", "Callable", "type")
    }
    inner = [name for name, meaning in meant.items() if meaning == "d_ff"]
    if "d_model" not in meant.values() and inner and inner[0].startswith(("hidden", "n_hidden", "d_hidden")):
        meant[inner[0]] = "d_model"
    return meant


def _chosen(options: Sequence[Sequence[tuple[Argument, ...]]]) -> Iterator[tuple[Argument, ...]]:
    for chosen in products(options, MOST):
        yield tuple(argument for slot in chosen for argument in slot)


def _by_place(name: str, named: Sequence[Description], meant: dict[str, str], made: Description) -> Iterator[Line]:
    first, rest = named[:3], named[3:]
    if len(first) < 3 or any(one["kind"] == "KEYWORD_ONLY" or _is_config(one, made) for one in first):
        return
    sizes = tuple(Argument("", size) for size in SIZES)
    for chosen in _chosen([_options(one, meant, made) for one in rest]):
        yield Line(name, (*sizes, *chosen))


def _options(one: Description, meant: Mapping[str, str], made: Description) -> list[tuple[Argument, ...]]:
    """The possible values of a constructor's parameter, each as no argument or one."""
    name, meaning = one["name"], meant.get(one["name"])
    own = "" if one["kind"] == "POSITIONAL_ONLY" else name
    omitted: list[tuple[Argument, ...]] = [] if one["required"] else [()]
    if _is_plain_object(one, made):
        return [(Argument(own, f"{one['annotation']}()", True),), *omitted]
    if _is_config(one, made):
        found: list[tuple[Argument, ...]] = [(Argument(own, line, True),) for line in _configs(one, made)]
        return [*found, *omitted]
    if meaning is not None:
        needed = one["required"] or (meaning == "num_kv_heads" and one["default"] is not None)
        return [(Argument(own, WRITTEN[meaning], needed, one["default"]),)]
    loose = meaning_of(name, loosely=True)
    if loose in OF_ROTATIONS and one["default"] is None:
        return [(Argument(own, WRITTEN[loose], True),), *omitted]
    if meanings.ROPE_FLAG.search(name) and (isinstance(one["default"], bool) or one["annotation"] == "bool"):
        return [(Argument(own, "True"),)]
    if meanings.COS.search(name) or meanings.SIN.search(name):
        which = 0 if meanings.COS.search(name) else 1
        helped = [f"{line.written()}[{which}]" for line in _functions(made)]
        return [(Argument(own, value, True),) for value in (*helped, ("cos", "sin")[which])] + omitted
    if meanings.ROPE.search(name) and one["default"] is None and one["annotation"] not in PLAIN:
        modules = [line.written() for line in _classes(made)]
        tables = [line.written() for line in _functions(made)]
        values = [*tables, *modules, "freqs_cis"] if re.search("freq|cis", name) else [*modules, *tables]
        return [(Argument(own, value, True),) for value in values] + (omitted or [(Argument(own, "None", True),)])
    if not one["required"]:
        if one["default"] is None and loose in ("dropout", "eps"):  # None is not a number
            omitted.append((Argument(own, WRITTEN[loose], True),))
        return omitted
    value = WRITTEN.get(loose or "") or PLAIN.get(one["annotation"], "None")
    return [(Argument(own, value, True),)]


def _is_config(one: Description, made: Description) -> bool:
    return bool(meanings.CONFIG.search(one["name"])) or _helper(one["annotation"], made, "configuration") is not None


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
        elif not any(parameter["required"] for parameter in helper["parameters"] or ()):
            yield Line("config", (Argument("", f"{helper['name']}()"),), keep="config")
    yield Line("config", keep="config")


def _settings(parameters: Sequence[Description]) -> Iterator[Argument]:
    for one in parameters:
        if one["kind"].startswith("VAR_"):
            continue
        meaning = meaning_of(one["name"], loosely=True)
        if meaning == "rope_theta" and meaning_of(one["name"]) is None and not one["required"]:
            continue  # for other layers
        if meaning in IN_CONFIGURATIONS and not isinstance(one["default"], bool):
            needed = one["required"] or (meaning == "num_kv_heads" and one["default"] is not None)
            yield Argument(one["name"], WRITTEN[meaning], needed, one["default"])
        elif one["required"]:
            yield Argument(one["name"], WRITTEN.get(meaning or "") or PLAIN.get(one["annotation"], "None"), True)


def _handed_in(one: Description, made: Description) -> list[tuple[Argument, ...]]:
    """The possible values of a parameter of forward."""
    name, needed = one["name"], one["required"]
    omitted: list[tuple[Argument, ...]] = [] if needed else [()]

    def each(values: Sequence[str]) -> list[tuple[Argument, ...]]:
        return [(Argument(name, value, True),) for value in dict.fromkeys(values)]

    if meanings.START.search(name):
        return [*omitted, *each(["0"])]
    if meanings.POSITIONS.search(name):
        forms = ["positions", "positions.expand(batch, seq)", *(["0"] if one["annotation"] == "int" else [])]
        return each(forms) if needed else [(Argument(name, "positions"),), *each(forms)]
    if meanings.MASK.search(name):
        if needed:
            return each([*MASKS, "None"])
        return [()] if meanings.PADDING.search(name) else [(Argument(name, "mask"),), *each(MASKS)]
    if meanings.COS.search(name) and meanings.SIN.search(name):
        return [*omitted, *each([*_rotations(name, made)])]
    if meanings.COS.search(name) or meanings.SIN.search(name):
        word = "cos" if meanings.COS.search(name) else "sin"
        return [*omitted, *each([form.format(table.format(word)) for form in DIMENSIONS for table in LAID_OUT])]
    if meanings.ROPE.search(name) and one["annotation"] not in PLAIN:
        return [*omitted, *each([*_rotations(name, made), *(["None"] if needed else [])])]
    if not needed:
        return omitted
    if meaning_of(name, loosely=True) == "causal":
        return each(["True"])
    loose = meaning_of(name, loosely=True)
    return each(
        [WRITTEN.get(loose or "") or {"int": "0"}.get(one["annotation"]) or PLAIN.get(one["annotation"], "None")]
    )


def _pairs(cosine: Description, sine: Description, made: Description) -> list[tuple[Argument, ...]]:
    """Possible pairs of tables, cos and sin."""
    tables = [f"rows({line.written()}, positions)" for line in _functions(made)] + list(_class_calls(made))
    found = [(f"{table}[0]{axes}", f"{table}[1]{axes}") for axes in ("", "[None]") for table in tables] + _both()
    slot: list[tuple[Argument, ...]] = [
        (Argument(cosine["name"], c, True), Argument(sine["name"], s, True)) for c, s in found
    ]
    return slot if cosine["required"] else [(), *slot]


def _rotations(name: str, made: Description) -> Iterator[str]:
    """Possible values of a parameter such as freqs_cis, rope or position_embeddings."""
    functions = [line.written() for line in _functions(made)]
    tables = [f"rows({line}, positions)" for line in functions] + functions
    modules = [line.written() for line in _classes(made)]
    called = list(_class_calls(made))
    complex_first = bool(re.search("freq|cis", name))
    yield from [*tables, *called, *modules] if complex_first else [*called, *modules, *tables]
    one = [
        form.format(table)
        for table in ("freqs_cis", "torch.view_as_real(freqs_cis).to(x.dtype)", "angles")
        for form in DIMENSIONS
    ]
    both = [f"({cosine}, {sine})" for cosine, sine in _both()]
    yield from [*one, *both] if complex_first else [*both, *one]


def _both() -> list[tuple[str, str]]:
    """Pairs of cosines and sines in all layouts."""
    forms = [form.format(table) for form in DIMENSIONS for table in LAID_OUT]
    return [(form.format("cos"), form.format("sin")) for form in forms]


def _functions(made: Description) -> Iterator[Line]:
    """Functions of the file that make tables."""
    for helper in made["helpers"]:
        if helper["kind"] == "function" and (arguments := _rope_arguments(helper["parameters"])) is not None:
            yield Line(helper["name"], arguments)


def _classes(made: Description) -> Iterator[Line]:
    """Modules of the file that rotate, or return tables."""
    for helper in made["helpers"]:
        if helper["kind"] == "class" and (arguments := _rope_arguments(helper["parameters"])) is not None:
            yield Line(helper["name"], arguments)


def _class_calls(made: Description) -> Iterator[str]:
    """Calls of modules with positions, or a length."""
    for helper in made["helpers"]:
        if helper["kind"] != "class" or (arguments := _rope_arguments(helper["parameters"])) is None:
            continue
        line = Line(helper["name"], arguments).written()
        forward = [one for one in helper["forward"] or () if not one["kind"].startswith("VAR_")]
        options = [_table_argument(one) for one in forward if one["required"] or meanings.POSITIONS.search(one["name"])]
        if len(options) < 3 and all(options):
            yield from (f"{line}({', '.join(chosen)})" for chosen in products(options, 6))


def _table_argument(one: Description) -> list[str]:
    name = one["name"]
    if meanings.POSITIONS.search(name):
        return ["positions[None]", "positions"]
    if meaning_of(name, loosely=True) == "max_seq_len" or re.search("len|seq|^[tT]$|^n$", name):
        return ["seq"]
    return ["x"] if re.search("^x$|hidden|input|^t$|value", name) else []


def _rope_arguments(parameters: Sequence[Description] | None) -> tuple[Argument, ...] | None:
    """The arguments of a function or class for rotations, where d is head_dim. None if one is unknown."""
    arguments = []
    heads = any(meaning_of(one["name"], loosely=True) == "num_heads" for one in parameters or ())
    for one in parameters or ():
        if one["kind"].startswith("VAR_"):
            continue
        meaning = meaning_of(one["name"], loosely=True)
        if meanings.CONFIG.search(one["name"]):
            value: str | None = "config"
        elif meaning == "d_model" and heads:
            value = "d_model"
        elif meaning in ("d_model", "head_dim", "d_ff") or re.search(r"dim|n_elem|^d$|features", one["name"].lower()):
            value = "head_dim"
        elif meaning in ("max_seq_len", "num_heads") or meaning_of(one["name"]) == "rope_theta":
            value = WRITTEN[meaning or ""]
        elif re.search(r"^(end|length|len|t|n|size|seq\w*|num_\w*|context\w*|max\w*)$", one["name"].lower()):
            value = "max_seq_len"
        elif one["required"] and meaning in ("device", "dtype"):
            value = meaning
        elif one["required"] and BEFORE.search(one["name"]):
            value = "0"
        elif one["default"] in NARROW:
            value = "torch.float32"
        elif one["required"]:
            return None
        else:
            value = None
        if value is not None and (one["required"] or value in OF_TABLES):
            arguments.append(Argument("" if one["kind"] == "POSITIONAL_ONLY" else one["name"], value, True))
    sized = {"head_dim", "max_seq_len", "d_model", "config"} & {one.value for one in arguments}
    return tuple(arguments) if sized else None
