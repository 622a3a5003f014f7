"""A learner's source as lines that say what they do: which function they stand in, what they call, what they add.

Read from the syntax tree; nothing is run. What is met first is the class under test, then what it uses.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_CHARACTERS = 100_000
MAX_NESTING = 60  # of brackets: deeper ones are no block, and cost the parser more than they should
MAX_TEXT = 800  # characters of one statement: in a longer one nothing is looked for

NAMES = {
    "norm": r"norm|rms|(^|_)ln(_|\d|$)",
    "rope": r"rope|rotar|rotat|^_?turn|freq|sinus|phase|^angle|posit(?!ion_?wise)|^pos$",
    "attention": r"attn|attention|attend|(^|_)sa$|multihead|^mha|^head$",
    "ffn": r"mlp|ffn|ffwd|feed|glu|(^|_)ff(_|$)",
    "split": r"split|heads$",
    "merge": r"join|merge|combine",
}
"""What a module, a class or a function is for, by its name. The first that fits: `attention_norm` is a norm."""
OPERATIONS = {
    "norm": r"rsqrt|rms_norm|layer_norm|vector_norm|mean\(.*(sqrt|\*\* -?0\.5|pow\(-?0\.5)"
    r"|(pow\(2\)|square\(|\*\* ?2).*(mean|sum|amax)\(|(mean|sum)\(.*(\*\* ?2|square)",
    "rope": r"\bcos|\bsin|view_as_complex|polar\(",
    "attention": r"softmax|scaled_dot_product|masked_fill",
    "ffn": r"silu\b|sigmoid|[gr]elu\b|SiLU",
}
"""The same by what is computed."""
_OTHERS = {"__init__": "init", "class": "class", "module": "module"}
"""Functions, or what is told as one, that no token passes."""
STREAM = r"^(x|h|hidden\w*|inputs?|stream|src|residual|tokens|embeddings?)$"


Top = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Line:
    """One simple statement, or the head of a compound one."""

    node: ast.AST
    number: int
    end: int
    text: str  # as ast.unparse writes it, with self for whatever the method calls itself
    kinds: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Function:
    """A function, a method, a class body or the module, with everything it does."""

    name: str
    owner: str  # its class
    parameters: list[str]
    lines: list[Line]
    roles: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Names:
    """What stands at the top of the file, and what the attributes of its classes are made of."""

    tops: dict[str, Top]
    under_test: set[str]
    roles: dict[str, set[str]] = field(default_factory=dict)  # of classes, functions and methods


def parse(source: str) -> ast.Module:
    """The syntax tree. Raises SyntaxError, ValueError, RecursionError or MemoryError, and takes no long time."""
    if len(source) > MAX_CHARACTERS:
        raise ValueError(f"a source may have {MAX_CHARACTERS} characters, but it has {len(source)}")
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", re.sub(r"#.*|'[^'\n]*'|\"[^\"\n]*\"", "", source)):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        if depth > MAX_NESTING:
            raise ValueError(f"brackets may be {MAX_NESTING} deep")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes
        return ast.parse(source)


def split(source: str) -> list[str]:
    """Its lines, as the parser counts them."""
    return re.split("\r\n|\r|\n", source)


def read(source: str, name: str) -> list[Function]:
    """Everything that the class or factory `name` uses, itself first; all of the file without such a name."""
    tree = parse(source)
    tops = {node.name: node for node in tree.body if isinstance(node, Top)}
    top = name.partition(".")[0]
    under_test = {top}
    if not isinstance(tops.get(top), ast.ClassDef | None):  # a factory: the classes that it calls
        under_test |= {one for one in _mentioned(tops[top], tops) if isinstance(tops[one], ast.ClassDef)}
    names = _Names(tops, under_test)
    functions = [function for one in _reached(top, tops) for function in _functions(tops[one])]
    functions.append(Function("module", "", [], list(_lines(tree.body, "", nested=False))))
    for function in functions:
        function.roles = _roles(function, names)
        names.roles.setdefault(function.name, set()).update(function.roles)
        if function.owner and function.name != "__init__":
            names.roles.setdefault(function.owner, set()).update(function.roles)
    names.roles |= {one: {role} for one in tops if one not in under_test and (role := _role(one)) is not None}
    made = _attributes(tops, names)
    for function in functions:
        for line in function.lines:
            _mark(line, function, names, made)
    for function in functions:
        _mark_function(function)
        works = any(line.kinds & {"sum", *NAMES} for line in function.lines)
        plain = works and not function.roles and function.name not in {*_OTHERS, top}
        if plain or (function.name == "forward" and function.owner in under_test):
            function.roles.add("stream")
        function.roles.add(_OTHERS.get(function.name, "forward"))
    return functions


def _reached(first: str, tops: dict[str, Top]) -> list[str]:
    order = [first] if first in tops else list(tops)
    seen = set(order)
    for one in order:  # grows while it is walked
        new = [other for other in _mentioned(tops[one], tops) if other not in seen]
        order += new
        seen.update(new)
    return order


def _mentioned(node: ast.AST, tops: dict[str, Top]) -> list[str]:
    found = [one.id for one in ast.walk(node) if isinstance(one, ast.Name) and one.id in tops]
    return list(dict.fromkeys(found))


def _functions(node: Top) -> list[Function]:
    """A function alone; of a class forward, the other methods, the constructor, and what stands beside them."""
    if not isinstance(node, ast.ClassDef):
        return [_function(node, "")]
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    methods.sort(key=lambda one: {"forward": 0, "__init__": 2}.get(one.name, 1))
    rest = [one for one in node.body if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    head = _line(node, "", f"class {node.name}", node.lineno, node.lineno)
    body = Function("class", node.name, [], [head, *_lines(rest, "", nested=True)])
    return [*(_function(one, node.name) for one in methods), body]


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> Function:
    parameters = [one.arg for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    own = parameters.pop(0) if owner and parameters and not node.decorator_list else ""
    return Function(node.name, owner, parameters, list(_lines([node], own, nested=True)))


def _lines(body: list[ast.stmt], own: str, *, nested: bool) -> Iterator[Line]:
    """nested: whether to go into functions and classes, which at the top of a file are told for themselves."""
    for node in body:
        inner: list[ast.stmt] = [
            one for part in ("body", "orelse", "finalbody") for one in getattr(node, part, ()) if one is not node
        ]
        inner += [one for handler in getattr(node, "handlers", ()) for one in handler.body]
        inner += [one for case in getattr(node, "cases", ()) for one in case.body]
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
        yield from _lines(inner, own, nested=nested)


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


def _role(name: str) -> str | None:
    name = name.lower()
    if "drop" in name:
        return None
    return next((role for role, pattern in NAMES.items() if re.search(pattern, name)), None)


def _roles(function: Function, names: _Names) -> set[str]:
    if function.name in _OTHERS:
        return set()
    roles = {
        role for role, pattern in OPERATIONS.items() if any(re.search(pattern, line.text) for line in function.lines)
    }
    by_name = _role(function.name) or (None if function.owner in names.under_test else _role(function.owner))
    return roles | ({by_name} if by_name else set())


def _attributes(tops: dict[str, Top], names: _Names) -> dict[str, set[str]]:
    """Attribute -> roles of the classes that it is made of, as in self.sa = MultiHeadAttention(...)."""
    made: dict[str, set[str]] = {}
    for top in tops.values():
        for node in ast.walk(top):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                roles = [names.roles.get(one, set()) for one in _mentioned(node.value, tops)]
                made.setdefault(node.targets[0].attr, set()).update(*roles)
    return made


def _mark(line: Line, function: Function, names: _Names, made: dict[str, set[str]]) -> None:
    """What it calls, and what it computes itself."""
    if line.text.startswith("def "):
        return
    line.kinds |= {role for role, pattern in OPERATIONS.items() if re.search(pattern, line.text)}
    for node in ast.walk(line.node):
        if isinstance(node, ast.Call):
            callee = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if isinstance(names.tops.get(callee), ast.ClassDef) or callee[:1].isupper():
                line.kinds.add("makes")
            line.kinds |= (called := _called(node.func, names, made))
            if "norm" in called and any(len(_longest_sum(given)) > 1 for given in node.args):
                line.kinds.add("post")


def _called(callee: ast.expr, names: _Names, made: dict[str, set[str]]) -> set[str]:
    if isinstance(callee, ast.Call):  # Norm(size)(x)
        return _called(callee.func, names, made)
    name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
    if made.get(name):
        return made[name]
    if role := _role(name):
        return {role}
    return names.roles.get(name, set()) if name not in names.under_test else set()


def _mark_function(function: Function) -> None:
    """What is seen from several lines together."""
    guarded: set[int] = set()
    for line in function.lines:
        if re.search(r"^if .*is (not )?None", line.text):
            guarded |= {line.end + 1, line.end + 2}
        if line.number in guarded or re.search(r" if .* is (not )?None else ", line.text):
            line.kinds.add("guarded")
        if isinstance(line.node, ast.Expr) and isinstance(line.node.value, ast.Call | ast.BinOp):
            line.kinds.add("thrown away")
    read_later: set[str] = set()
    for line in reversed(function.lines):
        names = [one for one in ast.walk(line.node) if isinstance(one, ast.Name)]
        targets = {one.id for one in names if isinstance(one.ctx, ast.Store)}
        if targets and not targets & read_later:
            line.kinds.add("unused")
        read_later |= {one.id for one in names if isinstance(one.ctx, ast.Load)}
    Flow(function).follow()


class Flow:
    """Follows the residual stream through a function, line by line: which names hold it, and which a normed copy."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.stream = {one for one in function.parameters if re.search(STREAM, one)} or set(function.parameters[:1])
        self.normed: set[str] = set()
        self.norms: set[str] = set()

    def follow(self) -> None:
        """Mark sums, and what is done to their terms."""
        for line in self.function.lines:
            if "norm" in line.kinds:
                self.normed |= {one.target.id for one in ast.walk(line.node) if isinstance(one, ast.NamedExpr)}
            terms = _longest_sum(line.node)
            streams = [name for term in terms for name in _held(term) if name in self.stream]
            if len(terms) > 1 and (streams or any(name in self.normed for term in terms for name in _held(term))):
                line.kinds.add("sum")
                line.kinds |= {"normed term"} if not streams else set()
                line.kinds |= {"doubled"} if len(streams) > 1 else set()
            read = {one.id for one in ast.walk(line.node) if isinstance(one, ast.Name)}
            if line.kinds & {"attention", "ffn"} and "norm" not in line.kinds and not read & self.normed:
                line.kinds.add("unnormed")
            self._norms(line)
            if isinstance(line.node, ast.Assign) and isinstance(target := line.node.targets[0], ast.Name):
                self._assign(line, target.id, line.node.value)

    def _norms(self, line: Line) -> None:
        if "norm" in line.kinds:
            used = re.findall(r"self\.(?!eps|e\b)\w+(?:\(\w+, \d\))?|\w+\['\w+'\]", line.text)
            norms = {one for one in used if _role(one.strip("']")) == "norm" or "(" in one} or set(used)
            line.kinds |= {"again"} if norms & self.norms else set()
            self.norms |= norms

    def _assign(self, line: Line, target: str, value: ast.expr) -> None:
        copied = value.id if isinstance(value, ast.Name) else None
        if "sum" in line.kinds or copied in self.stream:
            self.stream.add(target)
            self.normed.discard(target)
        elif copied in self.normed or ("norm" in line.kinds and not line.kinds & {"attention", "ffn"}):
            if copied is not None:
                line.kinds.add("keeps normed")
            self.normed.add(target)
            self.stream.discard(target)
        else:
            self.stream.discard(target)
            self.normed.discard(target)
        if copied in self.stream:
            line.kinds.add("copy")


def _longest_sum(node: ast.AST) -> list[ast.expr]:
    """The terms of the longest sum in it; the first of several that are as long."""
    longest: list[ast.expr] = []
    inner: set[ast.AST] = set()  # sums that are terms of longer ones
    for one in ast.walk(node):
        if one in inner or not (waiting := _addends(one)):
            continue
        terms = []
        while waiting:
            first = waiting.pop(0)
            if parts := _addends(first):
                inner.add(first)
                waiting = [*parts, *waiting]
            else:
                terms.append(first)
        longest = max(longest, terms, key=len)
    return longest


def _addends(node: ast.AST) -> list[ast.expr]:
    """What +, .add() or += adds to what; nothing for what is no sum."""
    match node:
        case ast.BinOp(op=ast.Add()):
            return [node.left, node.right]
        case ast.AugAssign(op=ast.Add()):
            return [node.target, node.value]
        case ast.Call(func=ast.Attribute(value=left, attr="add" | "add_"), args=[right]):
            return [left, right]
    return []


def _held(term: ast.expr) -> list[str]:
    """The name that a term is, twice for 2 * name; also behind detach(), float() and their like."""
    match term:
        case ast.Name():
            return [term.id]
        case ast.Attribute(value=inner, attr="data"):
            return _held(inner)
        case ast.NamedExpr():
            return [term.target.id]
        case ast.Call(func=ast.Attribute(value=inner, attr="detach" | "clone" | "float" | "double" | "to")):
            return _held(inner)
        case ast.BinOp(left=ast.Constant(), op=ast.Mult(), right=ast.Name() as inner):
            return [inner.id] * 2
    return []
