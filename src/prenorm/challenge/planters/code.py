"""A learner's file as text with its syntax tree: queries for the planters, and edits.

An edit replaces the text of one expression and changes no other character, including comments and spacing.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True, slots=True)
class Edit:
    """The characters start:end become text."""

    start: int
    end: int
    text: str


class Code:
    """A file that can be parsed. Raises SyntaxError for any other."""

    def __init__(self, text: str, block: str = "TransformerBlock") -> None:
        self.text, self.block = text, block
        self.tree = ast.parse(text)
        lines = text.splitlines(keepends=True)
        self._lines = [line.encode() for line in lines]
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))

    def edited(self, edits: list[Edit]) -> str | None:
        """The text after all edits; None if they overlap, change nothing, or leave invalid Python."""
        text, end = self.text, len(self.text)
        for edit in sorted(edits, key=lambda one: (one.start, one.end), reverse=True):
            if edit.end > end:
                return None
            text, end = text[: edit.start] + edit.text + text[edit.end :], edit.start
        try:
            same = ast.dump(ast.parse(text)) == ast.dump(self.tree)
        except SyntaxError:
            return None
        return None if same else text

    def of(self, node: ast.AST) -> str:
        """The text of an expression, without parentheses around it."""
        return self.text[slice(*self.span(node))]

    def inside(self, node: ast.AST) -> str:
        """The text of an expression, in parentheses if it needs them inside another one."""
        atoms = ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Constant
        return self.of(node) if isinstance(node, atoms) else f"({self.of(node)})"

    def replace(self, node: ast.AST, text: str) -> Edit:
        """An edit: text in place of a node."""
        return Edit(*self.span(node), text)

    def insert_after(self, node: ast.AST, text: str) -> Edit:
        """An edit: text behind a node."""
        end = self.span(node)[1]
        return Edit(end, end, text)

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> list[Edit]:
        """An edit of an operator that stands between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.text.find(old, start, end)
        return [Edit(at, at + len(old), new)] if at >= 0 else []

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Start and end of a node, as a slice. ast counts bytes, Python strings count characters."""
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

    # Queries.

    @cached_property
    def functions(self) -> list[ast.FunctionDef]:
        """Every function and method, in the order of the file."""
        return list(self.walk(self.tree, ast.FunctionDef))

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """Every class, by name."""
        return {one.name: one for one in self.walk(self.tree, ast.ClassDef)}

    @cached_property
    def torch(self) -> str | None:
        """The name under which the file imports torch."""
        for node in self.walk(self.tree, ast.Import):
            for alias in node.names:
                if alias.name == "torch" or (alias.name.startswith("torch.") and alias.asname is None):
                    return alias.asname or "torch"
        return None

    @cached_property
    def modules(self) -> set[str]:
        """Names of imported modules, or imported from modules."""
        aliases = self.walk(self.tree, ast.alias)
        return {(alias.asname or alias.name).split(".")[0] for alias in aliases}

    @cached_property
    def made_by(self) -> dict[str, str]:
        """For every `self.name = Class(...)`, the last part of the class's name."""
        found = {}
        for node in self.walk(self.tree, ast.Assign):
            match node:
                case ast.Assign(
                    targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as call
                ):
                    found[name] = called(call)
        return found

    def method(self, owner: str, name: str) -> ast.FunctionDef | None:
        """A method of a class."""
        body = self.classes[owner].body if owner in self.classes else []
        return next((one for one in body if isinstance(one, ast.FunctionDef) and one.name == name), None)

    def arguments(self, function: ast.FunctionDef) -> list[str]:
        """Its positional arguments, without self."""
        return [one.arg for one in function.args.args if one.arg != "self"]

    def meaning(self, call: ast.Call) -> str:
        """The source of what a call runs: a function or method of this file, or the class of an attribute."""
        name = called(call)
        found = [one for one in self.functions if one.name == name]
        made = self.classes.get(self.made_by.get(name, ""))
        return "\n".join(self.of(one) for one in [*found, *([made] if made else [])])

    def is_norm(self, call: ast.Call) -> bool:
        """Whether a call of one argument is a norm, by its class's name or by what the class does."""
        alone = len(call.args) == 1 and not call.keywords
        named = "norm" in self.made_by.get(called(call), "").lower()
        return alone and (named or bool(re.search(r"mean\(|\.norm\(|rsqrt", self.meaning(call))))

    def is_rotation(self, call: ast.Call) -> bool:
        """Whether a call rotates: its source mentions cosines or complex numbers, and is not attention."""
        text = self.meaning(call)
        return bool(re.search(r"cos|sin|complex|polar", text)) and not re.search("softmax|scaled_dot", text)

    def operand(self, call: ast.Call) -> ast.expr | None:
        """The operand of an operation: x in torch.sqrt(x), in sqrt(x) and in x.sqrt()."""
        match call.func:
            case ast.Attribute(value=value) if root(value) not in self.modules:
                return value
        return call.args[0] if call.args else None

    def calls(self, inside: ast.AST, *names: str) -> Iterator[ast.Call]:
        """Calls of functions or methods of these names; all calls without a name."""
        return (one for one in self.walk(inside, ast.Call) if not names or called(one) in names)

    def binary(self, inside: ast.AST, *operators: type[ast.operator]) -> Iterator[ast.BinOp]:
        """Binary operations of these kinds."""
        return (one for one in self.walk(inside, ast.BinOp) if isinstance(one.op, operators))

    def walk(self, inside: ast.AST, kind: type[Node]) -> Iterator[Node]:
        """All nodes of a kind, in the order of the text."""
        found = [node for node in ast.walk(inside) if isinstance(node, kind)]
        return iter(sorted(found, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))))


def called(call: ast.Call) -> str:
    """The last part of the name of what is called: silu for F.silu(x)."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def root(node: ast.expr) -> str:
    """The first part of a dotted name; nothing for other expressions."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def contains(node: ast.AST, kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> bool:
    """Whether a node or anything in it is of a kind."""
    return any(isinstance(one, kind) for one in ast.walk(node))
