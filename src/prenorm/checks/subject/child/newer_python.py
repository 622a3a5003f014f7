"""What another Python than this one has: names that typing_extensions gives, and what is no fault of an author's."""

import re
import sys
import types

NEWER = {
    "itertools.batched": "3.12",
    "math.sumprod": "3.12",
    "random.binomialvariate": "3.12",
    "typing.override": "3.12",
    "typing.TypeAliasType": "3.12",
    "types.get_original_bases": "3.12",
    "collections.abc.Buffer": "3.12",
    "copy.replace": "3.13",
    "math.fma": "3.13",
    "os.process_cpu_count": "3.13",
    "queue.ShutDown": "3.13",
    "statistics.kde": "3.13",
    "typing.NoDefault": "3.13",
    "typing.ReadOnly": "3.13",
    "typing.TypeIs": "3.13",
    "typing.get_protocol_members": "3.13",
    "typing.is_protocol": "3.13",
    "types.CapsuleType": "3.13",
    "warnings.deprecated": "3.13",
    "typing.evaluate_forward_ref": "3.14",
    "uuid.uuid7": "3.14",
}
"""The release that a name of the standard library is new in; prenorm needs 3.11."""
SYNTAX = {
    "3.12": re.compile(r"^\s*((async\s+)?def|class)\s+\w+\s*\[(.+\]\s*[(:]|\s*$)|^\s*type\s+\w+\s*(\[.*\])?\s*="),
    "3.14": re.compile(r"^\s*except\s+[\w.]+\s*,\s*[\w.]+\s*(,.*)?:"),
}
"""By release, lines that it can read and those before cannot: type parameters, and exceptions without parentheses."""
OLDER = re.compile(r"mutable default <class '(?!(?:list|dict|set)')(?P<of>[^']+)'> for field (?P<field>\w+)")
"""What dataclasses say since Python 3.11 of a default without a hash; before, only of lists, dictionaries and sets."""
THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"


def stand_in(error: BaseException, notes: dict[str, str]) -> bool:
    """Whether the name that is missing was put in its place from typing_extensions; a note says so."""
    module, name = missing_name(error)
    if f"{module}.{name}" not in NEWER or module not in sys.modules:
        return False
    try:
        import typing_extensions

        setattr(sys.modules[module], name, getattr(typing_extensions, name))
    except (ImportError, AttributeError):
        return False
    notes[f"{module}.{name}"] = f"new in Python {NEWER[f'{module}.{name}']}: that of typing_extensions stands in"
    return True


def needed(error: BaseException) -> str:
    """Why it is only this Python that raises; empty if it is not."""
    if isinstance(error, ValueError) and (older := OLDER.match(str(error))):
        return (
            f"the default of {older['field']}, a {older['of']} that can be changed, needs Python 3.10 or older, "
            f"and this is Python {THIS}: field(default_factory=...) runs in all of them"
        )
    what, release = ".".join(missing_name(error)), ""
    if isinstance(error, SyntaxError):
        what = "its syntax"
        release = next((one for one, pattern in SYNTAX.items() if pattern.search(error.text or "")), "")
        if not release and error.msg.startswith("f-string") and sys.version_info < (3, 12):
            what, release = "its syntax, if it is right,", "3.12"  # quotes in quotes: this Python cannot tell
    release = NEWER.get(what, release)
    if not release or _number(release) <= _number(THIS):
        return ""
    return f"{what} needs Python {release}, and this is Python {THIS}: check it with a newer one"


def missing_name(error: BaseException) -> tuple[str, str]:
    """The module that lacks a name, and the name; two empty texts if that is not the error."""
    if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        return error.obj.__name__, error.name or ""
    if isinstance(error, ImportError) and (
        found := re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
    ):
        return found[2], found[1]
    return "", ""


def _number(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))
