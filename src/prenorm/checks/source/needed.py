"""Which statements have to run so that some names can be used: what makes and changes them, and what that needs."""

import ast
import dis
import inspect
import types
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True, slots=True)
class Names:
    """The global names of one statement: what it reads, what it makes or deletes, whose values it changes.

    calls: what it reads as it runs, without what its functions read when they are called. by_calls: what its functions
    make, by `global`.
    """

    reads: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    makes: set[str] = field(default_factory=set)
    by_calls: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)

    @property
    def touches(self) -> set[str]:
        """What is another after it has run."""
        return self.makes | self.changes


@dataclass(frozen=True, slots=True)
class Choice:
    """The numbers of the statements that run; of those that are only tried, as nothing wanted needs them; all names."""

    kept: set[int]
    tried: set[int]
    names: list[Names]


def choose(body: Sequence[ast.stmt], wanted: Collection[str]) -> Choice:
    """What runs of a notebook's statements: those that the wanted names need, imports, and what costs nothing.

    Definitions and assignments that call nothing run too. Assignments that another class needs are tried. Both do not
    run where something that makes, changes or gives what they use does not run: a wrong value is worse than none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, on the learner's code
        imported = _imported(body)
        names = _with_calls(body, imported)
    imports = {number for number, node in enumerate(body) if isinstance(node, Import)}
    needed = _closure(names, wanted) | imports
    free = {number for number, node in enumerate(body) if _costs_nothing(node)}
    of_classes = _closure(names, [node.name for node in body if isinstance(node, ast.ClassDef)])
    tried = {number for number in of_classes if _is_assignment(body[number])} - needed - free
    users = defaultdict(list)
    for number in (free | tried) - needed:
        for name in names[number].calls | names[number].makes:
            users[name].append(number)
    kept = needed | free | tried
    lost = [name for number, one in enumerate(names) if number not in kept for name in one.touches]
    for name in lost:  # grows while it is walked
        for number in users.pop(name, ()) if name not in imported else ():
            kept.discard(number)
            lost += names[number].touches
    return Choice(kept, tried & kept, names)


def _closure(names: Sequence[Names], wanted: Collection[str]) -> set[int]:
    """The statements that make or change what is wanted, what these read, and so on."""
    makers = defaultdict(list)
    for number, one in enumerate(names):
        for name in one.touches:
            makers[name].append(number)
    found: set[int] = set()
    waiting = sorted(wanted)
    for name in waiting:  # grows while it is walked
        for number in makers.pop(name, ()):
            if number not in found:
                found.add(number)
                waiting += sorted(names[number].reads)
    return found


def _imported(body: Sequence[ast.stmt]) -> set[str]:
    imports = [one for node in body for one in _at_once(node) if isinstance(one, Import)]
    return {one.asname or one.name.partition(".")[0] for node in imports for one in node.names}


def _with_calls(body: Sequence[ast.stmt], imported: Collection[str]) -> list[Names]:
    """The names of each statement. Calling a function makes what it declares as global."""
    names = [_names(node, imported) for node in body]
    made = {node.name: one.by_calls for node, one in zip(body, names, strict=True) if isinstance(node, Definition)}
    for node, one in zip(body, names, strict=True):
        if not isinstance(node, Definition):
            one.makes.update(*(made[name] for name in one.calls if name in made))
    return names


def _names(node: ast.stmt, imported: Collection[str]) -> Names:
    """As Python's compiler sees them; none where it refuses the statement, which then runs, and raises."""
    names = Names()
    try:
        code = compile(ast.Module([node], []), "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return names
    _read(code, names, set(), is_module=True, is_called=True)
    names.changes.update(name for name in _changes(node, imported) if name)
    return names


def _read(code: types.CodeType, names: Names, made: Collection[str], *, is_module: bool, is_called: bool) -> None:
    """made: names of the module that the statement itself has made before."""
    own: set[str] = set()
    for step in dis.get_instructions(code):
        operation, _, kind = step.opname.partition("_")
        if isinstance(step.argval, types.CodeType):
            inner = step.argval
            is_function = bool(inner.co_flags & inspect.CO_OPTIMIZED)
            is_comprehension = inner.co_name.startswith("<") and inner.co_name != "<lambda>"
            now = is_called and (is_comprehension or not is_function)
            _read(inner, names, own if is_module else made, is_module=False, is_called=now)
        elif operation == "LOAD" and kind in ("NAME", "GLOBAL", "FROM_DICT_OR_GLOBALS"):
            if step.argval not in own and step.argval not in made:
                names.reads.add(step.argval)
                if is_called:
                    names.calls.add(step.argval)
        elif operation in ("STORE", "DELETE") and kind in ("NAME", "GLOBAL"):
            own.add(step.argval)
            if is_module:
                names.makes.add(step.argval)
            elif kind == "GLOBAL":
                names.by_calls.add(step.argval)


def _changes(statement: ast.stmt, imported: Collection[str]) -> Iterator[str | None]:
    """Names whose values it changes: by x.a = ..., x[0] = ..., x.append(...), setattr(x, ...), @add_to(x), fill_(x).

    A method that stands alone is there for what it does, but torch.save(...) does nothing to torch. An underscore is
    how torch marks what works in place.
    """
    for node in _at_once(statement):
        match node:
            case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
                yield _owner(node)
            case ast.Expr(value=ast.Call(func=function, args=arguments)):
                if isinstance(function, ast.Attribute) and _owner(function) not in imported:
                    yield _owner(function)
                called = function.attr if isinstance(function, ast.Attribute) else _owner(function)
                if arguments and called and (called in ("setattr", "delattr") or called.endswith("_")):
                    yield _owner(arguments[0])
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                calls = [one for one in node.decorator_list if isinstance(one, ast.Call)]
                yield from (_owner(one) for call in calls for one in call.args)


def _at_once(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a statement that run with it."""
    waiting = [node]
    for one in waiting:  # grows while it is walked
        yield one
        if not isinstance(one, Definition | ast.Lambda):
            waiting += ast.iter_child_nodes(one)


def _owner(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_assignment(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign | ast.AnnAssign)


def _costs_nothing(node: ast.stmt) -> bool:
    """Whether it only defines, imports or assigns, without a call; also under a condition, or as one of two ways."""
    waiting: list[ast.AST] = [node]
    for one in waiting:  # grows while it is walked
        if isinstance(one, ast.Call | ast.Await) or (isinstance(one, ast.stmt) and not isinstance(one, Plain)):
            return False
        if not isinstance(one, Definition | ast.Lambda | ast.ExceptHandler):
            waiting += ast.iter_child_nodes(one)
    return True


Plain = Definition | Import | ast.Assign | ast.AnnAssign | ast.If | ast.Try | ast.Pass
