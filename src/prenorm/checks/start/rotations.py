"""Candidates for values that rotate: the file's tables and modules, and the checker's own tables in all layouts."""

import re
from collections.abc import Iterator, Sequence

from ..subject.child import meanings
from ..subject.child.meanings import meaning_of
from ..subject.child.names import WRITTEN
from ..subject.learner import USUAL
from ..subject.raised import Description
from ..subject.recipe import Argument, Line, products

NARROW = ("torch.bfloat16", "torch.float16")
"""Defaults that would round a file's own tables."""
OF_TABLES = ("theta", "max_seq_len", "head_dim", "config", "torch.float32")
"""Arguments that functions for tables get even if they have defaults."""
LAID_OUT = ("{0}", "torch.cat(({0}, {0}), -1)", "{0}.repeat_interleave(2, -1)")
"""A table with an entry per pair, or per dimension (halves, or neighbours)."""
DIMENSIONS = ("{}", "{}[None]", "{}[None, None]", "{}[None, :, None]")
"""The places of the axes of the batch and the heads."""
BEFORE = re.compile(r"prefix|offset|start|num_(cls|special|register)", re.I)
"""Arguments that count positions in front of the first token."""


def in_forward(name: str, made: Description) -> Iterator[str]:
    """Possible values of a parameter such as freqs_cis, rope or position_embeddings."""
    functions = [line.written() for line in table_functions(made)]
    tables = [f"rows({line}, positions)" for line in functions] + functions
    built = [line.written(frozenset({"dtype", "device"})) for line in modules(made)]
    called = list(module_calls(made))
    complex_first = bool(re.search("freq|cis", name))
    yield from [*tables, *called, *built] if complex_first else [*called, *built, *tables]
    one = [
        form.format(table)
        for table in ("freqs_cis", "torch.view_as_real(freqs_cis).to(x.dtype)", "angles")
        for form in DIMENSIONS
    ]
    order = "({1}, {0})" if re.search("sin.*cos", name, re.I) else "({0}, {1})"
    both = [order.format(*tables) for tables in cos_and_sin()]
    yield from [*one, *both] if complex_first else [*both, *one]


def cos_and_sin() -> list[tuple[str, str]]:
    """Our tables, as pairs."""
    return list(zip(laid_out("cos"), laid_out("sin"), strict=True))


def laid_out(table: str) -> list[str]:
    """A table of ours in all layouts."""
    return [axes.format(entries.format(table)) for axes in DIMENSIONS for entries in LAID_OUT]


def table_functions(made: Description) -> Iterator[Line]:
    """Functions of the file that make tables."""
    for helper in made["helpers"]:
        if helper["kind"] == "function" and (arguments := _rope_arguments(helper["parameters"])) is not None:
            yield Line(helper["name"], arguments)


def modules(made: Description) -> Iterator[Line]:
    """Modules of the file that rotate, or return tables, with a dtype and a device where the block gets them."""
    asked = {"dtype", "device"} & {meaning_of(one["name"]) for one in made["constructor"] or ()}
    for helper in made["helpers"]:
        if helper["kind"] == "class" and (arguments := _rope_arguments(helper["parameters"])) is not None:
            optional = [one for one in helper["parameters"] or () if not one["required"] and one["default"] is None]
            meant = [(one["name"], meaning_of(one["name"])) for one in optional]
            also = [Argument(name, meaning) for name, meaning in meant if meaning is not None and meaning in asked]
            yield Line(helper["name"], (*arguments, *also), follows=True)


def module_calls(made: Description) -> Iterator[str]:
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
        elif one["default"] == USUAL["rope_theta"]:  # whatever it is called
            value = "theta"
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
