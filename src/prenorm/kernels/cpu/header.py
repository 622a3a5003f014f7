"""calls.h, read: how the struct of each call lies in memory, and the sizes that Python and C++ both rely on."""

import re
import struct
from collections.abc import Callable
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
    declared = re.fullmatch(r"(?:const )?(\w+) (.+)", line.strip())
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


def packed_size(name: str) -> int:
    """Bytes of a struct."""
    return struct.calcsize("".join(field.code for field in STRUCTS[name]))


def packer(name: str) -> Callable[..., bytes]:
    """A function of a struct's fields, by name, that gives its bytes. An array is any sequence of so many numbers."""
    return compiled(name, "call({fields})", "return pack({values})", {})


def compiled(name: str, head: str, body: str, known: dict[str, Any]) -> Callable[..., Any]:
    """A function of a struct's fields whose body may `pack({values})` them; a field that is `known` is no argument.

    It is put together as text, as namedtuple does it: a call costs little more than one that was written by hand.
    """
    fields = STRUCTS[name]
    arguments = ", ".join(field.name for field in fields if field.name not in known)
    values = ", ".join(_value(field, known) for field in fields)
    scope: dict[str, Any] = {**known, "pack": struct.Struct("".join(field.code for field in fields)).pack}
    exec(f"def {head.format(fields=arguments)}:\n {body.format(values=values)}", scope)
    return scope["call"]


def _value(field: Field, known: dict[str, Any]) -> str:
    return f"*{field.name}" if field.is_array else f"{field.name}()" if field.name in known else field.name
