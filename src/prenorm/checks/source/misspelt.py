"""Errors of a name that the source uses and gives to nothing: a slip, whatever the arguments of the call are."""

import difflib
import re
import sys
from collections.abc import Mapping
from typing import Any

UNDEFINED = re.compile(r"^name '(\w+)' is not defined")
LACKS = re.compile(r"^'(?!NoneType|dict|int|float|str|tuple|list)(?!\w*[Cc]onfig)\w+' object has no attribute '(\w+)'")
"""A value of another type may have what those in front lack: it was passed, or is None because nothing was."""
OF_TORCH = re.compile(r"^module '(torch[\w.]*)' has no attribute '(\w+)'")
ALMOST = 0.9
"""How alike a name is to one of torch's; one that is not may be of another release."""


def misspelt(error: Mapping[str, Any], source: str) -> bool:
    """Whether no argument could mend an error: its name is an attribute that nobody sets, or defined nowhere.

    source: of the block and its neighbours, which may set an attribute, or a global, before they call it.
    """
    kind, message = error["type"], error["message"]
    if kind == "NameError" and (found := UNDEFINED.match(message)):
        name = found[1]
        given = rf"^(?=\S).*\b{name}\b|^ {{1,4}}{name}\b[^=\n]*=|\b(global|import) .*\b{name}\b|\bimport \*"
    elif kind == "AttributeError" and (found := LACKS.match(message)):
        name = found[1]
        target = rf"\.{name}\b(\[.*\])?(, *\w+\.\w+)* *(:.*)?=(?!=)"
        given = rf"{target}|^ +{name} *[:=]|\bdef {name}\b|[\"']{name}[\"']"
    elif kind == "AttributeError" and (found := OF_TORCH.match(message)):
        name = found[2]
        return bool(difflib.get_close_matches(name, dir(sys.modules.get(found[1])), 1, ALMOST))
    else:
        return False
    return re.search(rf"\b{name}\b", source) is not None and re.search(given, source, re.M) is None
