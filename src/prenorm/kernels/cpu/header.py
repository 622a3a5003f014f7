"""Reads calls.h: how the struct of each call lies in memory, and the constants that Python and C++ share."""

import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HEADER = Path(__file__).with_name("calls.h")
CODES = {"int64_t": "q", "double": "d"}  # of struct, in memory one after the other: each takes eight bytes


class Field(NamedTuple):
    """A number, a pointer, or an array of numbers."""

    name: str
    code: str
    is_array: bool = False


Structs = dict[str, tuple[Field, ...]]


def read(text: str) -> tuple[Structs, dict[str, int]]:
    """The fields of every struct, those of a struct inside one with its name before theirs; and the constants."""
    text = re.sub(r"//.*", "", text)
    structs: Structs = {}
    for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.MULTILINE | re.DOTALL):
        structs[name] = tuple(field for line in body.split(";") if line.strip() for field in _fields(line, structs))
    constants = re.findall(r"^constexpr int64_t (\w+) = (\d+);", text, re.MULTILINE)
    return structs, {name: int(value) for name, value in constants}


def _fields(line: str, structs: Structs) -> list[Field]:
    declared = re.fullmatch(r"(?:const )?(\w+) (.+)", " ".join(line.split()))
    assert declared is not None, line
    kind, fields = declared[1], []
    for one in declared[2].split(","):
        found = re.fullmatch(r"\s*(\*?)(\w+)(?:\[(\d+)\])?", one)
        assert found is not None, line
        pointer, name, count = found.groups()
        if kind in structs and not pointer:
            fields += [field._replace(name=f"{name}_{field.name}") for field in structs[kind]]
        else:
            code = "P" if pointer else CODES[kind]
            fields.append(Field(name, f"{count}{code}" if count else code, bool(count)))
    return fields


STRUCTS, CONSTANTS = read(HEADER.read_text())


def layout(name: str) -> struct.Struct:
    """How a struct lies in memory."""
    return struct.Struct("".join(field.code for field in STRUCTS[name]))


def packer(name: str) -> Callable[..., bytes]:
    """A function of all of a struct's fields that gives its bytes. An array is any sequence of so many numbers."""
    names = [field.name for field in STRUCTS[name]]
    return compiled(name, "call({fields})", "return pack({values})", {}, names)


def compiled(struct: str, head: str, body: str, known: dict[str, Any], given: Sequence[str]) -> Callable[..., Any]:
    """A function of the `given` fields of a struct whose body may `pack({values})` all of them.

    A field that is `known` is called for its value. A pointer that is neither given nor known is null; a number must be
    one of the two. It is put together as text, as namedtuple does it: a call costs what one written by hand does.
    """
    fields = STRUCTS[struct]
    values = {field.name: field.name for field in fields if field.name in given}
    values |= {field.name: f"{field.name}()" for field in fields if field.name in known}
    values |= {field.name: "0" for field in fields if field.name not in values and field.code == "P"}
    names = [field.name for field in fields]
    wrong = [*(name for name in given if name not in names), *(name for name in names if name not in values)]
    assert not wrong, f"{struct} and those who call with it do not agree on {', '.join(wrong)}"
    packed = ", ".join("*" * field.is_array + values[field.name] for field in fields)
    scope: dict[str, Any] = {**known, "pack": layout(struct).pack}
    exec(f"def {head.format(fields=', '.join(given))}:\n {body.format(values=packed)}", scope)
    return scope["call"]
