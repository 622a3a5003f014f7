"""How a block is built and called, as two lines of Python: `Block(d_model, num_heads, d_ff)` and `block(x)`.

The lines run beside the learner's code (child/names.py says which names they may use). Either is guessed from
signatures, as several candidates of which the first that runs is taken (start/start.py), or given by a person.
"""

import ast
import dataclasses
import functools
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError
from .child.meanings import SIZES

ASKED = ("dtype", "device", "num_kv_heads", "causal", "positions", "mask")
"""What is handed in only where the judgement asks for it, or nothing works without."""

CERTAIN = frozenset([*SIZES, "x", "theta", "eps", "dropout", "causal", "dtype", "device", "0", "4", "True", "False"])
"""Values that are hardly mistaken where a name asks for them."""
NUMBERS = frozenset([*SIZES, "1"])
"""Values of arguments that may be any number."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a line. name: its own, empty if it goes by place; value: as it is written.

    needed: whether the line has it even where it is one of ASKED and nobody asks; guess: whether neither its name nor
    its annotation says that this is its value, or of which class it is.
    """

    name: str
    value: "str | Line"
    needed: bool = False
    default: Any = None
    guess: bool = False

    @property
    def uses(self) -> frozenset[str]:
        """The names that its value uses."""
        return self.value.uses if isinstance(self.value, Line) else names_in(self.value)

    def is_there(self, asked: frozenset[str]) -> bool:
        """Whether the line has it."""
        return self.needed or isinstance(self.value, Line) or not self.uses & {*ASKED} or bool(self.uses & asked)


@dataclass(frozen=True, slots=True)
class Line:
    """A call, as it is written: callee(arguments); or, where somebody gave one, that text."""

    callee: str
    arguments: tuple[Argument, ...] = ()
    text: str | None = None
    keep: str = ""  # a name that the result is kept under, for other lines
    follows: bool = False  # the result is a module, to be moved to the device that the line around it asks for

    def written(self, asked: frozenset[str] = frozenset()) -> str:
        """The text, with what is asked for."""
        if self.text is not None or not self.callee:
            return self.text or ""
        inside = []
        for one in self.arguments:
            if one.is_there(asked):
                value = one.value.written(asked) if isinstance(one.value, Line) else one.value
                inside.append(f"{one.name}={value}" if one.name else value)
        called = f"{self.callee}({', '.join(inside)})"
        if self.follows and "device" in asked and not self.uses & {"device"}:
            called += ".to(device)"
        return f"({self.keep} := {called})" if self.keep else called

    @property
    def guessed(self) -> list[str]:
        """Arguments whose values are no plain meaning of their names, such as tables, masks and None."""
        found: list[str] = []
        for one in self.arguments:
            if one.guess:
                found.append(one.name or str(one.value))
            elif isinstance(one.value, Line):
                found += one.value.guessed
            elif one.is_there(frozenset()) and one.value not in CERTAIN:
                found.append(one.name or str(one.value))
        return found

    @property
    def not_understood(self) -> list[str]:
        """Those of them whose names say nothing, so that a number or a size stands for anything."""
        inner = [one.value.not_understood if isinstance(one.value, Line) else [] for one in self.arguments]
        own = [[one.name or one.value] for one in self.arguments if one.guess and isinstance(one.value, str)]
        return [name for names in (*own, *inner) for name in names]

    def unread(self, number: str = "unread") -> "Line":
        """With something that must not be looked at in place of what is guessed (see child/unread.py).

        number: what stands in place of a number that is guessed.
        """

        def of(one: Argument) -> Argument:
            if isinstance(one.value, Line) and not one.guess:
                return dataclasses.replace(one, value=one.value.unread(number))
            if not Line("", (one,)).guessed:
                return one
            return dataclasses.replace(one, value=number if one.guess and one.value in NUMBERS else "unread")

        by_name = (Argument("", "unread"),) if self.callee == "config" and not self.arguments else ()
        return dataclasses.replace(self, arguments=(*by_name, *map(of, self.arguments)))

    def settled(self, read: Mapping[str, Any], keep: bool) -> "Line":
        """With what a configuration of ours was asked for, and without names that no other line needs."""
        inner = tuple(
            dataclasses.replace(one, value=one.value.settled(read, keep)) if isinstance(one.value, Line) else one
            for one in self.arguments
        )
        if self.callee == "config":
            there = {one.name for one in inner}
            inner += tuple(Argument(name, _entry(value), True) for name, value in read.items() if name not in there)
        return dataclasses.replace(self, arguments=inner, keep=self.keep if keep else "")

    def uses_kept(self, name: str) -> bool:
        """Whether an argument uses what another one is kept under."""
        others = (one for one in self.arguments if not (isinstance(one.value, Line) and one.value.callee == name))
        return any(name in one.uses for one in others)

    @property
    def uses(self) -> frozenset[str]:
        """All names that it may use."""
        if self.text is not None:
            return names_in(self.text)
        return frozenset().union(*(one.uses for one in self.arguments), names_in(self.callee))

    def takes(self, meaning: str) -> bool:
        """Whether it can hand in what we call meaning."""
        return bool(self.uses & ({"theta", "rope_theta"} if meaning == "rope_theta" else {meaning}))

    def argument(self, meaning: str) -> Argument | None:
        """The argument whose value is just that."""
        for one in self.arguments:
            if isinstance(one.value, Line):
                if (inner := one.value.argument(meaning)) is not None:
                    return inner
            elif one.value == ("theta" if meaning == "rope_theta" else meaning):
                return one
        return None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Both lines."""

    build: Line
    call: Line = field(default_factory=lambda: Line("block", (Argument("", "x"),)))


def _entry(read: str | Mapping[str, Any]) -> str | Line:
    """A value of a configuration, or a part of it."""
    if isinstance(read, str):
        return read
    return Line("config", tuple(Argument(name, _entry(value), True) for name, value in read.items()))


def given(text: str, what: str) -> Line:
    """A line that a person gave. Raises ConfigError where it is no expression."""
    try:
        ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"--{what} is one Python expression, but {text!r} is not: {error}.") from None
    return Line("", text=text.strip())


@functools.lru_cache(4096)
def names_in(text: str) -> frozenset[str]:
    """The names that an expression uses."""
    if not text:
        return frozenset()
    return frozenset(one.id for one in ast.walk(ast.parse(text, mode="eval")) if isinstance(one, ast.Name))


def products(options: Sequence[Sequence[Any]], most: int) -> Iterator[tuple[Any, ...]]:
    """Their product, up to so many, those first that take the first of each or nearly so."""
    waiting: list[tuple[int, tuple[int, ...]]] = [(0, (0,) * len(options))]
    seen = {waiting[0][1]}
    if any(not one for one in options):
        return
    while waiting and most > 0:
        cost, places = heapq.heappop(waiting)
        yield tuple(options[number][place] for number, place in enumerate(places))
        most -= 1
        for number, place in enumerate(places):
            following = (*places[:number], place + 1, *places[number + 1 :])
            if place + 1 < len(options[number]) and following not in seen:
                seen.add(following)
                heapq.heappush(waiting, (cost + 1, following))
