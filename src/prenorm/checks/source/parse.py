"""A learner's source as functions and statements, from the syntax tree, without running it."""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_CHARACTERS = 100_000
MAX_NESTING = 60  # of brackets: deeper ones would cost the parser too much
MAX_TEXT = 800  # characters of a statement that is searched; longer ones are skipped

Top = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Line:
    """One simple statement, or the head of a compound one."""

    node: ast.AST
    number: int
    end: int
    text: str  # as ast.unparse writes it, with self for the name that the method uses for itself
    arms: tuple[
        tuple[int, bool], ...
    ] = ()  # of each if around it, the outermost first: its line, and whether in its else
    kinds: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Function:
    """A function, a method, a class body or the module, with everything it does."""

    name: str
    owner: str  # its class
    parameters: list[str]
    lines: list[Line]
    roles: set[str] = field(default_factory=set)


def parse(source: str) -> ast.Module:
    """The syntax tree, in a short time. Raises SyntaxError, ValueError, RecursionError or MemoryError."""
    if len(source) > MAX_CHARACTERS:
        raise ValueError(f"a source may have at most {MAX_CHARACTERS} characters, but it has {len(source)}")
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", re.sub(r"#.*|'[^'\n]*'|\"[^\"\n]*\"", "", source)):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        if depth > MAX_NESTING:
            raise ValueError(f"brackets may be nested at most {MAX_NESTING} deep")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes
        return ast.parse(source)


def split(source: str) -> list[str]:
    """Its lines, as the parser counts them."""
    return re.split("\r\n|\r|\n", source)


def functions_of(node: Top) -> list[Function]:
    """A function; or a class's forward, other methods, constructor, and body."""
    if not isinstance(node, ast.ClassDef):
        return [_function(node, "")]
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    methods.sort(key=lambda one: {"forward": 0, "__init__": 2}.get(one.name, 1))
    rest = [one for one in node.body if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    head = _line(node, "", f"class {node.name}", node.lineno, node.lineno)
    body = Function("class", node.name, [], [head, *_lines(rest, "", nested=True)])
    return [*(_function(one, node.name) for one in methods), body]


def module_itself(tree: ast.Module) -> Function:
    """The top level of a file without its functions and classes."""
    return Function("module", "", [], list(_lines(tree.body, "", nested=False)))


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> Function:
    parameters = [one.arg for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    own = parameters.pop(0) if owner and parameters and not node.decorator_list else ""
    return Function(node.name, owner, parameters, list(_lines([node], own, nested=True)))


def _lines(body: list[ast.stmt], own: str, *, nested: bool) -> Iterator[Line]:
    """nested: whether to include functions and classes, which at the top of a file are separate."""
    for node in body:
        inner = _inner(node)
        if isinstance(node, Top):
            if not nested:
                continue
            for one in node.decorator_list:
                yield _line(one, own, ast.unparse(one), one.lineno, one.lineno)
        if not inner:
            if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                yield _line(node, own, ast.unparse(node), node.lineno, node.end_lineno or node.lineno)
            continue
        end = max(node.lineno, inner[0].lineno - 1)
        yield _line(_head(node), own, _head_text(node), node.lineno, end)
        if not isinstance(node, ast.If):
            yield from _lines(inner, own, nested=nested)
            continue
        for arm, otherwise in ((node.body, False), (node.orelse, True)):
            for line in _lines(arm, own, nested=nested):
                line.arms = ((node.lineno, otherwise), *line.arms)
                yield line


def _inner(node: ast.stmt) -> list[ast.stmt]:
    """The statements in a compound one."""
    inner: list[ast.stmt] = [one for part in ("body", "orelse", "finalbody") for one in getattr(node, part, ())]
    inner += [one for handler in getattr(node, "handlers", ()) for one in handler.body]
    return inner + [one for case in getattr(node, "cases", ()) for one in case.body]


def _head(node: ast.stmt) -> ast.AST:
    match node:
        case ast.If() | ast.While():
            return node.test
        case ast.For() | ast.AsyncFor():
            return node.iter
    return ast.Pass()


def _head_text(node: ast.stmt) -> str:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return f"def {node.name}({ast.unparse(node.args)})"
        case ast.If() | ast.While():
            return f"{type(node).__name__.lower()} {ast.unparse(node.test)}"
        case ast.For() | ast.AsyncFor():
            return f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}"
        case ast.With() | ast.AsyncWith():
            return "with " + ", ".join(map(ast.unparse, node.items))
    return ""


def _line(node: ast.AST, own: str, text: str, number: int, end: int) -> Line:
    if len(text) > MAX_TEXT:
        node, text = ast.Pass(), ""
    text = re.sub(r"\*\* \((-[\w.]+)\)", r"** \1", " ".join(text.split()))
    return Line(node, number, end, re.sub(rf"\b{own}\.", "self.", text) if own else text)
