"""The form of every reply. A reply comes from a process that the learner's code may have taken over."""

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .child.names import WRITTEN
from .child.wire import WireError

Form = Callable[[Any], bool]
MOST_PARAMETERS = 500  # of one function: all of them are tried for what they may mean


def checked(op: str, reply: dict[str, Any]) -> dict[str, Any]:
    """reply, if it has the form that child/driver.py gives to replies to op. WireError if not."""
    forms = (_ERROR,) if op not in FORMS else (_ERROR, *FORMS[op])
    if op in FORMS and not any(form(reply) for form in forms):
        raise WireError(f"a reply to {op} has another form")
    return reply


def _is(*kinds: type) -> Form:
    return lambda value: type(value) in kinds


def _list(item: Form, most: int = 1 << 20) -> Form:
    return lambda value: type(value) is list and len(value) <= most and all(map(item, value))


def _named(item: Form) -> Form:
    return lambda value: type(value) is dict and all(map(item, value.values()))


def _or_none(form: Form) -> Form:
    return lambda value: value is None or form(value)


def _record(optional: dict[str, Form] | None = None, /, **needed: Form) -> Form:
    known = needed | (optional or {})

    def form(value: Any) -> bool:
        if type(value) is not dict or not needed.keys() <= value.keys() <= known.keys():
            return False
        return all(known[name](item) for name, item in value.items())

    return form


def _is_name(value: Any) -> bool:
    """Names become part of lines of Python."""
    return type(value) is str and len(value) < 200 and all(part.isidentifier() for part in value.split("."))


_TEXT, _WHOLE, _SWITCH, _TENSOR = _is(str), _is(int), _is(bool), _is(Tensor)


def _is_read(value: Any, depth: int = 4) -> bool:
    """What was asked of a configuration: names, and what names.WRITTEN gives for them, or the same of parts."""
    if depth == 0 or type(value) is not dict or not all(map(_is_name, value)):
        return False
    parts = [one for one in value.values() if type(one) is dict]
    rest = [one for one in value.values() if type(one) is not dict]
    return (
        all(type(one) is str for one in rest)
        and {*rest} <= {*WRITTEN.values()}
        and all(_is_read(one, depth - 1) for one in parts)
    )


_SHAPE = _list(_WHOLE)
_PARAMETERS = _or_none(
    _list(
        _record(
            {"handed_up": _SWITCH},
            name=_is_name,
            kind=_TEXT,
            required=_SWITCH,
            default=_is(bool, int, float, str, types.NoneType),
            annotation=_TEXT,
            settings=_SWITCH,
        ),
        MOST_PARAMETERS,
    )
)
_LOADED = _record(
    name=_is_name,
    constructor=_PARAMETERS,
    is_class=_SWITCH,
    helpers=_list(
        _record({"of_transformers": _SWITCH}, name=_is_name, kind=_TEXT, parameters=_PARAMETERS, forward=_PARAMETERS),
        40,
    ),
    notes=_named(_TEXT),
    numbers=lambda value: _named(lambda meaning: meaning in WRITTEN)(value) and all(map(_is_name, value)),
)
_LISTED = _list(_record(name=_TEXT, shape=_SHAPE, dtype=_TEXT, device=_TEXT, requires_grad=_SWITCH, same_as=_TEXT))
_FRAME = _record(file=_or_none(_TEXT), line=_or_none(_WHOLE), function=_TEXT, code=_TEXT)
_SITE = _record(what=_TEXT, shape=_SHAPE, file=_or_none(_TEXT), line=_or_none(_WHOLE), function=_TEXT, code=_TEXT)
_STRAY = _or_none(_record(how=_TEXT, dtype=_TEXT, name=_TEXT, frames=_list(_FRAME)))
_SEEN = _named(_record(given=_TENSOR, result=_TENSOR, operations=_list(_TEXT)))
_ERROR = _record(
    error=_record(
        {"entered": _SWITCH, "sites": _list(_SITE), "stray": _STRAY, "seen": _SEEN},
        type=_TEXT,
        message=_TEXT,
        frames=_list(_FRAME),
    )
)

FORMS: dict[str, tuple[Form, ...]] = {
    "load": (_record(missing=_list(_TEXT)), _LOADED),
    "look_beside": (_LOADED,),
    "build": (
        _record(
            {"origins": _named(_list(_FRAME))},
            block=_WHOLE,
            parameters=_LISTED,
            tensors=_LISTED,
            forward=_PARAMETERS,
            layers=_list(_TEXT),
            read=_is_read,
            notes=_named(_TEXT),
        ),
    ),
    "run": (
        _record(
            {
                "operations": _list(_TEXT),
                "modules_created": _WHOLE,
                "created": _list(_SHAPE),
                "masked": _SWITCH,
                "random": _list(_FRAME),
                "gradients": _named(_or_none(_TENSOR)),
                "x_gradient": _or_none(_TENSOR),
                "stray": _STRAY,
                "seen": _SEEN,
            },
            y=_TENSOR,
            x_after=_TENSOR,
            requires_grad=_SWITCH,
        ),
    ),
    "run_on_meta": (_record(shape=_SHAPE, device=_TEXT),),
    "values": (_record(values=_named(_TENSOR), owners=_named(_TEXT), classes=_named(_TEXT), modules=_list(_TEXT)),),
    "elsewhere": (_record(files=_named(_TEXT)),),
    "forget": (_record(),),
}
