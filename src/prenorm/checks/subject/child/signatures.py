"""What a learner's classes and functions take, in plain words: for guesses at how they are built and called."""

import ast
import enum
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .meanings import CONFIG, CONFIG_CLASS, PARTS, ROPE, SIZES, meaning_of
from .missing_packages import is_stub

MOST_HELPERS = 40
DEFINES_ROTATIONS = re.compile(r"^(class|def)\s+\w*(rope|rotary|_cis|rotat)", re.I | re.M)
MAKES = re.compile(r"precompute|compute|build|make|get|create|init|cache|table|freqs|generate|rope|rotary", re.I)


def parameters(function: Callable[..., Any]) -> list[dict[str, Any]] | None:
    """Name, kind, whether it is required, its default where that is a plain value, and what its annotation says.

    "settings": whether sizes are read from it, as from a configuration. What **kwargs is asked for is a parameter too.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    found = [
        {
            "name": name,
            "kind": parameter.kind.name,
            "required": parameter.default is parameter.empty and not parameter.kind.name.startswith("VAR_"),
            "default": _plain(parameter.default),
            "annotation": _said(parameter.annotation) or _callable(parameter.default),
        }
        for name, parameter in signature.parameters.items()
    ]
    if inspect.isclass(function) and any(one["kind"] == "VAR_KEYWORD" for one in found):
        own = {one["name"] for one in found}
        found += [one for one in _handed_up(function) if one["name"] not in own]
    keywords = {one["name"] for one in found if one["kind"] == "VAR_KEYWORD"}
    asked = list(_asked(function, keywords))
    for one in found:
        sizes = {meaning_of(key, loosely=True) for name, key, _ in asked if name == one["name"]} & {*SIZES}
        one["settings"] = len(sizes) > 1 and not one["kind"].startswith("VAR_")
    there = {one["name"] for one in found}
    read: dict[str, dict[str, Any]] = {}
    for name, key, default in asked:
        required = default is inspect.Parameter.empty
        if name in keywords and key not in there and (required or key not in read):
            more = {"required": required, "default": _plain(default), "annotation": "", "settings": False}
            read[key] = {"name": key, "kind": "KEYWORD_ONLY"} | more
    return found + list(read.values())


def _asked(function: Callable[..., Any], keywords: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    """What is read of its arguments: names as in kwargs["dim"], kwargs.get("eps", 1e-6) and config.dim and defaults.

    keywords: those that are dictionaries, whose attributes are no entries.
    """
    try:
        written = inspect.getsource(vars(function)["__init__"] if inspect.isclass(function) else function)
        tree = ast.parse(textwrap.dedent(written))
    except (KeyError, TypeError, OSError, SyntaxError):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key)), ctx=ast.Load()):
                yield name, key, inspect.Parameter.empty
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="get" | "pop" as way),
                args=[ast.Constant(value=str(key)), *more],
            ):
                default = more[0].value if more and isinstance(more[0], ast.Constant) else None
                yield name, key, default if more or way == "get" else inspect.Parameter.empty
            case ast.Attribute(value=ast.Name(id=name), attr=key) if name not in keywords:
                yield name, key, inspect.Parameter.empty


def _handed_up(owner: type) -> list[dict[str, Any]]:
    """What **kwargs may hold: the arguments of the constructor that the class inherits."""
    above = owner.__mro__[1:] if "__init__" in vars(owner) else ()
    base = next((one for one in above if "__init__" in vars(one)), object)
    if base in (object, nn.Module) or not issubclass(base, nn.Module):
        return []
    return [
        one | {"kind": "KEYWORD_ONLY", "handed_up": True}
        for one in parameters(base) or ()
        if not one["kind"].startswith("VAR_")
    ]


def _plain(default: Any) -> Any:
    """A default that a line may show; of a dtype its name."""
    if isinstance(default, torch.dtype):
        return str(default)
    return default if type(default) in (bool, int, float, str) else None  # a StrEnum is a str, and not plain


def _callable(default: Any) -> str:
    """What an annotation would say, if the default is a class, a function or a module."""
    return "Callable" if callable(default) and default is not inspect.Parameter.empty else ""


def helpers(names: Mapping[str, Any], make: Any, constructor: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What of the learner's may be handed to a block: {"name", "kind", "parameters", "forward"}.

    kind: "enumeration", "configuration" (a class of settings; "of_transformers" says whether it derives from one of
    that package), "class" (a class that rotates or makes tables, mostly a module), "part" (a module that is called as
    an attention, a feed-forward or a norm is), or "function".
    """
    annotated = {one["annotation"] for one in constructor} | {
        one["annotation"] for one in constructor if CONFIG.search(one["name"])
    }
    rotating = {one["annotation"] for one in constructor if ROPE.search(one["name"])}
    found: list[dict[str, Any]] = []
    for name, value in names.items():
        if value is make or is_stub(value) or not callable(value) or isinstance(value, nn.Module):
            continue
        is_class = inspect.isclass(value)
        rotates = name in rotating or ROPE.search(name) is not None
        settings = CONFIG_CLASS.search(name) or (name in annotated and not rotates)
        if is_class and issubclass(value, enum.Enum):
            if name in annotated:
                found.append({"name": name, "kind": "enumeration", "parameters": None, "forward": None})
        elif is_class and not issubclass(value, nn.Module) and settings:
            if getattr(value, "__module__", "") in ("builtins", "typing", "torch", "abc"):
                continue
            one = {"name": name, "kind": "configuration", "parameters": parameters(value), "forward": None}
            of_transformers = any(base.__module__.startswith("transformers.") for base in value.__mro__)
            found.append(one | {"of_transformers": of_transformers})
        elif is_class and rotates:
            call = value.forward if issubclass(value, nn.Module) else getattr(value, "__call__", None)  # noqa: B004
            found.append({"name": name, "kind": "class", "parameters": parameters(value), "forward": _bound(call)})
        elif is_class and issubclass(value, nn.Module) and inspect.isabstract(value):
            continue
        elif is_class and issubclass(value, nn.Module) and any(re.search(of, name, re.I) for _, of in PARTS.values()):
            found.append({"name": name, "kind": "part", "parameters": parameters(value), "forward": None})
        elif isinstance(value, types.FunctionType) and (ROPE.search(name) or "freq" in name) and MAKES.search(name):
            found.append({"name": name, "kind": "function", "parameters": parameters(value), "forward": None})
    found.sort(key=lambda one: (one["name"] not in annotated, one["kind"] == "part"))
    return found[:MOST_HELPERS]


def _bound(method: Any) -> list[dict[str, Any]] | None:
    """A method's parameters without self."""
    found = None if method is None else parameters(method)
    return found[1:] if found else found


def _said(annotation: Any) -> str:
    """An annotation's name, without Optional and None: "ModelArgs", "int", "Tensor"."""
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        inner = [one for one in typing.get_args(annotation) if one is not type(None)]
        return _said(inner[0]) if len(inner) == 1 else ""
    if inspect.isclass(annotation):
        return annotation.__name__
    text = annotation if isinstance(annotation, str) else str(annotation)
    text = re.sub(r"^(typing\.)?Optional\[(.*)\]$", r"\2", text.strip("'\" "))
    return re.sub(r"\s*\|\s*None|None\s*\|\s*", "", text).strip("'\" ")[:100]
