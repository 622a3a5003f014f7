"""Which statements of a notebook its class needs, so that what trains, prints and draws is left out."""

import ast
import builtins
import symtable
from collections.abc import Iterator, Sequence

Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Imported = ast.Import | ast.ImportFrom
NOW = ("listcomp", "setcomp", "dictcomp", "genexpr")
"""Scopes that run where they stand; the body of a function does not."""


def needed(statements: Sequence[ast.stmt], name: str = "") -> set[int]:
    """The places of the statements that are kept.

    They are imports, definitions, and all that changes a name which the class `name` reads, or which one of these
    reads: an assignment, a loop that fills a list, a `with`. Without such a class, what any definition reads.
    Assignments that call nothing are kept, too: TransformerBlock = Layer. What would meet a name that is left out goes
    as well, unless the class needs it.
    """
    changes = [_changed(one) for one in statements]
    defined = {one.name for one in statements if isinstance(one, Defined)}
    imported = set().union(*(names for one, names in zip(statements, changes, strict=True) if _imports(one)))
    changes = [
        names | ({_receiver(one)} - imported - defined - {""}) for one, names in zip(statements, changes, strict=True)
    ]
    reads = [_read(one) for one in statements]
    wanted = {name} if any(name in names for names in changes) else set(defined)
    kept: set[int] = set()
    while more := {place for place, names in enumerate(changes) if names & wanted} - kept:
        kept |= more
        wanted |= set().union(*(reads[place] for place in more))
    plain = {place for place, one in enumerate(statements) if place not in kept and _may_stay(one)}
    while dangling := {place for place in plain if _read(statements[place], now=True) - _bound(kept | plain, changes)}:
        plain -= dangling
    return kept | plain


def _may_stay(node: ast.stmt) -> bool:
    """Whether a statement does no more than to give a name to something."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return not any(isinstance(one, ast.Call) for one in ast.walk(node))
    return isinstance(node, Defined) or _imports(node)


def _imports(node: ast.stmt) -> bool:
    """An import, or: try this import, or else that."""
    if not isinstance(node, ast.Try):
        return isinstance(node, Imported)
    return any(isinstance(one, Imported) for one in node.body) and all(map(_may_stay, node.body))


def _bound(places: set[int], changes: Sequence[set[str]]) -> set[str]:
    return set().union(set(dir(builtins)), {"__name__", "__file__"}, *(changes[place] for place in places))


def _changed(node: ast.stmt) -> set[str]:
    """The names of the module that a statement gives a value, or whose value it changes."""
    found: set[str] = set()
    for one in _here(node):
        match one:
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
                found |= {arg.id for by in one.decorator_list for arg in getattr(by, "args", ()) if _is_name(arg)}
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
            case ast.Attribute(value=whole, ctx=ast.Store()) | ast.Subscript(value=whole, ctx=ast.Store()):
                found |= {_first(whole)}
            case ast.Call(func=ast.Name(id="setattr"), args=[ast.Name(id=name), *_]):
                found.add(name)
    return found - {""}


def _receiver(node: ast.stmt) -> str:
    """The name in NAME.method(...) as a statement, or as one in a loop, such as rates.append(1.0)."""
    for one in _here(node):
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call) and isinstance(one.value.func, ast.Attribute):
            return _first(one.value.func.value)
    return ""


def _first(node: ast.expr) -> str:
    """The name at the start of a.b[c].d."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


def _here(node: ast.AST) -> Iterator[ast.AST]:
    """It and what is in it, without the bodies of functions and classes."""
    yield node
    if not isinstance(node, Defined | ast.Lambda):
        for one in ast.iter_child_nodes(node):
            yield from _here(one)


def _read(node: ast.stmt, *, now: bool = False) -> set[str]:
    """The names of the module that a statement reads. now: when it runs, without what its functions read later."""
    try:
        table = symtable.symtable(ast.unparse(node), "cell", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    found = {one.get_name() for one in table.get_symbols() if one.is_referenced()}
    inner = [*table.get_children()]
    for one in inner:  # grows while it is walked
        if now and one.get_type() != "class" and one.get_name() not in NOW:
            continue
        found |= {symbol.get_name() for symbol in one.get_symbols() if symbol.is_global() and symbol.is_referenced()}
        inner += one.get_children()
    return found
