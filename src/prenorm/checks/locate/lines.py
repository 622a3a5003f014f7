"""A learner's source as lines marked with what they do: their function, what they call, what they add.

What is met first is the class under test, then what it uses.
"""

import ast
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ..source.parse import Function, Line, Top, functions_of, module_itself, parse
from .flow import Flow, longest_sum
from .halves import mark_halves
from .roles import NAMES, OPERATIONS, role_of
from .scores import mark_scores
from .unturned import unturned

_OTHERS = {"__init__": "init", "class": "class", "module": "module"}
"""Functions and other scopes that are not part of the forward pass."""


@dataclass(slots=True)
class _Names:
    """The top-level names of the file, and the roles of its classes and functions."""

    tops: dict[str, Top]
    under_test: set[str]
    roles: dict[str, set[str]] = field(default_factory=dict)  # of classes, functions and methods


def read(source: str, name: str, used: Collection[str] = ()) -> list[Function]:
    """Everything that the class or factory `name` uses, itself first; the whole file if there is no such name.

    used: what else belongs to it.
    """
    tree = parse(source)
    tops = {node.name: node for node in tree.body if isinstance(node, Top)}
    top = name.partition(".")[0]
    under_test = {top}
    if not isinstance(tops.get(top), ast.ClassDef | None):  # a factory: the classes that it calls
        under_test |= {one for one in _mentioned(tops[top], tops) if isinstance(tops[one], ast.ClassDef)}
    names = _Names(tops, under_test)
    reached = _reached([top, *used], tops, _behind_names(tree, tops))
    functions = [function for one in reached for function in functions_of(tops[one])]
    functions.append(module_itself(tree))
    for function in functions:
        function.roles = _roles(function, names)
        names.roles.setdefault(function.name, set()).update(function.roles)
        if function.owner and function.name != "__init__":
            names.roles.setdefault(function.owner, set()).update(function.roles)
    names.roles |= {one: {role} for one in tops if one not in under_test and (role := role_of(one)) is not None}
    made = _attributes(tops, names)
    for function in functions:
        for line in function.lines:
            _mark(line, function, names, made)
    _mark_shadows(functions)
    for function in functions:
        _mark_function(function)
        works = any(line.kinds & {"sum", *NAMES} for line in function.lines)
        plain = works and not function.roles and function.name not in {*_OTHERS, top}
        if plain or (function.name == "forward" and function.owner in under_test):
            function.roles.add("stream")
        function.roles.add(_OTHERS.get(function.name, "forward"))
    return functions


WEIGHT = re.compile(r"Linear\w*\(|Parameter\(")


def not_built(source: str, made_of: Collection[str]) -> set[str]:
    """The modules with weights that are in the file and not in the block, as another setting would choose them.

    made_of: the classes of the block's modules; if none of them is the file's own, nothing is known.
    """
    modules: set[str] = set()
    weighted: set[str] = set()
    for node in parse(source).body:
        if isinstance(node, ast.ClassDef):
            bases = {one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in node.bases}
            if bases & {"Module", *modules}:
                modules.add(node.name)
                weighted |= {node.name} if WEIGHT.search(ast.unparse(node)) else set()
    return weighted - {*made_of} if modules & {*made_of} else set()


def _reached(first: list[str], tops: dict[str, Top], behind: dict[str, list[str]]) -> list[str]:
    order = [one for one in dict.fromkeys(first) if one in tops] if first[0] in tops else list(tops)
    seen = set(order)
    for one in order:  # grows while it is walked
        held = [name for node in ast.walk(tops[one]) if isinstance(node, ast.Name) for name in behind.get(node.id, ())]
        new = [other for other in dict.fromkeys([*_mentioned(tops[one], tops), *held]) if other not in seen]
        order += new
        seen.update(new)
    return order


def _behind_names(tree: ast.Module, tops: dict[str, Top]) -> dict[str, list[str]]:
    """The classes and functions that a top-level name may hold: NORMS = {"rms": RMSNorm}, or @register(NORMS)."""
    behind: dict[str, list[str]] = {}
    variables: set[str] = set()
    for node in tree.body:
        for target, value in _assigned(node):
            if isinstance(target, ast.Name) and target.id not in tops:
                variables.add(target.id)
                behind[target.id] = _mentioned(value, tops)
    for name, top in tops.items():
        for decorator in top.decorator_list:
            called = [tops[one] for one in _mentioned(decorator, tops) if one != name]
            used = {one.id for part in (decorator, *called) for one in ast.walk(part) if isinstance(one, ast.Name)}
            for one in used & variables:
                behind[one].append(name)
    return behind


LIBRARIES = frozenset({"self", "torch", "nn", "F", "functional", "init", "np", "math", "einops", "einx"})
"""What stands before names that are not the learner's own."""


def _mentioned(node: ast.AST, tops: dict[str, Top]) -> list[str]:
    """The classes and functions whose names stand in it, also as module.name."""
    found = []
    for one in ast.walk(node):
        match one:
            case ast.Name(id=name):
                found.append(name)
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module not in LIBRARIES:
                found.append(name)
    return [one for one in dict.fromkeys(found) if one in tops]


def _roles(function: Function, names: _Names) -> set[str]:
    if function.name in _OTHERS:
        return set()
    roles = {
        role for role, pattern in OPERATIONS.items() if any(re.search(pattern, line.text) for line in function.lines)
    }
    by_name = role_of(function.name) or (None if function.owner in names.under_test else role_of(function.owner))
    return roles | ({by_name} if by_name else set())


def _attributes(tops: dict[str, Top], names: _Names) -> dict[str, set[str]]:
    """Attribute -> roles of its classes, as in self.sa = MultiHeadAttention(...)."""
    made: dict[str, set[str]] = {}
    for top in tops.values():
        for node in ast.walk(top):
            for target, value in _assigned(node):
                if isinstance(target, ast.Attribute):
                    roles = [names.roles.get(one, set()) for one in _mentioned(value, tops)]
                    made.setdefault(target.attr, set()).update(*roles, _role_of_torchs(value, target.attr))
    return made


def _role_of_torchs(value: ast.expr, name: str) -> set[str]:
    """The role of one of torch's modules under a name that says nothing: self.mix = nn.MultiheadAttention(...)."""
    if isinstance(value, ast.GeneratorExp | ast.ListComp):
        value = value.elt
    if role_of(name) is not None or not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return set()
    role = role_of(value.func.attr)
    if value.func.attr == "Sequential" and len(re.findall(r"Linear\(", ast.unparse(value))) > 1:
        role = "ffn"
    return set() if role is None else {role}


def _assigned(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Targets and their values, also of a, b = A(), B() and of a, b = (A() for _ in range(2))."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            return list(zip(targets, values, strict=False))
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
            return [(target, value) for target in targets]
        case ast.Assign(targets=[target, *_], value=value):
            return [(target, value)]
    return []


def _mark(line: Line, function: Function, names: _Names, made: dict[str, set[str]]) -> None:
    """Mark a line with what it calls, and what it computes itself."""
    if line.text.startswith("def "):
        return
    line.kinds |= {role for role, pattern in OPERATIONS.items() if re.search(pattern, line.text)}
    if not function.roles & {"rope"} or function.roles & {"attention"}:
        line.kinds |= _of_axes(line.text)
    for node in ast.walk(line.node):
        if isinstance(node, ast.Call):
            callee = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if isinstance(names.tops.get(callee), ast.ClassDef) or callee[:1].isupper():
                line.kinds.add("makes")
            line.kinds |= (called := _called(node.func, names, made))
            if "norm" in called and any(len(longest_sum(given)) > 1 for given in node.args):
                line.kinds.add("post")


PATTERN = re.compile(r"'([\w. ()]*)->([\w. ()]*)'")
"""Of einops."""


def _of_axes(text: str) -> set[str]:
    """Whether a pattern of einops splits an axis, or joins several."""
    found = set()
    for before, after in PATTERN.findall(text):
        if "(" in after:
            found.add("joins")
        elif "(" in before:
            found.add("splits")
    return found


def _called(callee: ast.expr, names: _Names, made: dict[str, set[str]]) -> set[str]:
    if isinstance(callee, ast.Call):  # Norm(size)(x)
        return _called(callee.func, names, made)
    if isinstance(callee, ast.Attribute) and callee.attr == "forward":  # norm.forward(x)
        return _called(callee.value, names, made)
    name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
    if made.get(name):
        return made[name]
    if role := role_of(name):
        return {role}
    return names.roles.get(name, set()) if name not in names.under_test else set()


EXP = re.compile(r"\bexp2?\(")
MAXIMUM = re.compile(r"\ba?max\(|\bmaximum\(")
OF_ALL = re.compile(r"\.a?max\(\)|torch\.a?max\([\w.]+\)")


def _mark_softmax(function: Function) -> None:
    """Mark a softmax by hand that subtracts the maximum of all scores, or none, where it should be each row's."""
    exponents = [line for line in function.lines if EXP.search(line.text)]
    if not exponents or "rope" in function.roles:
        return
    maxima = [line for line in function.lines if MAXIMUM.search(line.text)]
    for line in maxima:
        line.kinds |= {"maximum of all"} if OF_ALL.search(line.text) else set()
    for line in exponents:
        line.kinds |= set() if maxima else {"exp without maximum"}


def _mark_shadows(functions: Sequence[Function]) -> None:
    """Mark NAME = None of a class whose constructor makes a module self.NAME: the class's own None is what is read."""
    for body in functions:
        own = [
            line
            for other in functions
            if other.name == "__init__" and other.owner == body.owner
            for line in other.lines
        ]
        for line in body.lines if body.name == "class" else ():
            if (named := re.match(r"(\w+)(: .*)? = None$", line.text)) is None:
                continue
            if any(re.match(rf"self\.{named[1]}\b.* = .*\w\(", one.text) for one in own):
                line.kinds |= {"shadows", role_of(named[1]) or ""}


def _mark_function(function: Function) -> None:
    """Mark what only several lines together show."""
    guarded: set[int] = set()
    for line in function.lines:
        if re.search(r"^if .*is (not )?None", line.text):
            guarded |= {line.end + 1, line.end + 2}
        if line.number in guarded or re.search(r" if .* is (not )?None else ", line.text):
            line.kinds.add("guarded")
        if isinstance(line.node, ast.Expr) and isinstance(line.node.value, ast.Call | ast.BinOp | ast.Tuple):
            line.kinds.add("thrown away")
    read_later: set[str] = set()
    for line in reversed(function.lines):
        names = [one for one in ast.walk(line.node) if isinstance(one, ast.Name)]
        targets = {one.id for one in names if isinstance(one.ctx, ast.Store)}
        if targets and not targets & read_later:
            line.kinds.add("unused")
        read_later |= {one.id for one in names if isinstance(one.ctx, ast.Load)}
    if "rope" in function.roles and (left := unturned(function)) is not None:
        left.kinds.add("unturned")
    _mark_softmax(function)
    mark_halves(function)
    mark_scores(function)
    splits = [line for line in function.lines if "splits" in line.kinds]
    counts = Counter(str(PATTERN.findall(line.text)) for line in splits)
    for line in splits:
        if counts[str(PATTERN.findall(line.text))] < max(counts.values()):
            line.kinds.add("odd")
    Flow(function).follow()
