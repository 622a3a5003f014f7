"""A command line as a record: tyro makes a flag of each field, and a text flag accepts any text."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

_POSITIONAL = get_args(tyro.conf.Positional[int])[1]
_REPEATED = get_args(tyro.conf.UseAppendAction[int])[1]


def flags_from(
    record: Any, argv: list[str], *, prog: str, settings: type | None = None, description: str | None = None
) -> Any:
    """The flags of a command line as this record, or as one of a union of records, each a subcommand.

    settings: a record whose fields are also flags of this command.
    Exits with a message if the command line is invalid.
    """
    records = [*(get_args(record) or [record]), *([settings] if settings else [])]
    return tyro.cli(record, prog=prog, description=description, args=list(_joined(argv, records)))


def _joined(argv: list[str], records: list[Any]) -> Iterator[str]:
    """The words of a command line, with `--prompt -x` as `--prompt=-x`, because tyro would parse -x as a flag.

    A word that is a flag of this command stays a flag, because the text before it was probably forgotten;
    --prompt=--json passes it as a text.
    """
    flags = _flags_of(records)
    pending = argv[::-1]
    while pending:
        word = pending.pop()
        if word == "--":  # positional arguments follow
            yield word
            yield from reversed(pending)
            return
        takes_text = word.replace("_", "-") in flags.texts
        if takes_text and pending and pending[-1].startswith("-") and _name(pending[-1]) not in flags.names:
            word = f"{word}={pending.pop()}"
        yield word


class _Flags(NamedTuple):
    """The names of all flags, and of those that take one text."""

    names: set[str]
    texts: set[str]


def _flags_of(records: list[Any]) -> _Flags:
    names, texts = {"-h", "--help"}, set()
    for record in records:
        for field, hint in get_type_hints(record, include_extras=True).items():
            marks, kind = _unwrapped(hint)
            if _POSITIONAL in marks:
                continue
            name = f"--{field.replace('_', '-')}"
            names |= {name, f"--no-{name[2:]}"} if kind is bool else {name}
            if _is_text(kind) or (_REPEATED in marks and _is_text(get_args(kind)[0])):
                texts.add(name)
    return _Flags(names, texts)


def _name(word: str) -> str:
    """The flag in a word such as --max_new_tokens=3."""
    return word.partition("=")[0].replace("_", "-")


def _unwrapped(hint: Any) -> tuple[list[Any], Any]:
    """The annotations of a type hint, and the type itself."""
    marks: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        marks += more
    return marks, hint


def _is_text(kind: Any) -> bool:
    """Whether the type is str or Path, optionally with None."""
    is_union = get_origin(kind) in (Union, types.UnionType)
    return {*(get_args(kind) if is_union else [kind])} - {types.NoneType} <= {str, Path}
