"""Why it cannot be inferred how a block is built or called, and what to do then. That is no fault of the block."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from ..probes.case import raised
from ..subject.child import meanings
from ..subject.child.errors import NoShapesError
from ..subject.child.layers import CONTAINERS
from ..subject.child.missing_packages import NotInstalledError
from ..subject.child.names import UnknownEntryError
from ..subject.learner import Learner
from ..subject.raised import Description, LearnerError
from ..subject.recipe import Line
from .build_lines import with_defaults
from .options import PLAIN

LACKS_ENTRY = re.compile(r"^'(\w+)' object has no attribute '(\w+)'")
NEARLY = 0.8
"""How alike the name of an entry is to one that is there, which then is meant."""


class UnknownArgumentsError(Exception):
    """It cannot be inferred how the block is built or called, which is not a fault."""


class NoBlockError(Exception):
    """What is under test is no block, but something larger or smaller. mend: what to check instead."""

    def __init__(self, evidence: str, mend: str) -> None:
        super().__init__(evidence)
        self.mend = mend


def refuse_layers(learner: Learner, layers: Sequence[str]) -> NoReturn:
    """It stacks layers: a model, or the trunk of one."""
    name, named = learner.made["name"], " and ".join(layers)
    if CONTAINERS.issuperset(layers):
        mend = f'build it with one layer, so that it is a block: --build "{name}(..., depth=1)"'
        raise NoBlockError(f"{name} stacks several layers, and is no block", mend)
    mend = f"check the class of one layer: {named}"
    raise NoBlockError(f"{name} stacks layers of the class {named}, and is no block", mend)


def refuse_container(value: str) -> NoReturn:
    """The input of forward is not the tensor itself, but is in value."""
    raise UnknownArgumentsError(
        f"forward takes its first argument apart, so it is no tensor; give the line that calls it: "
        f"--call 'block({value})'."
    )


def refuse_build(learner: Learner, error: LearnerError, *, guessed: bool) -> NoReturn:
    """No line builds the block: raise error itself if it is the block's own, and otherwise UnknownArgumentsError.

    guessed: whether the lines were inferred, and not given by a person.
    """
    _refuse_entry(learner, error)
    if error.error["type"] == NotInstalledError.__name__ or not guessed:
        raise error
    name, constructor = learner.made["name"], learner.made["constructor"] or ()
    tensors = [one["name"] for one in constructor if one["required"] and "Tensor" in one["annotation"]]
    if tensors and not learner.made["is_class"]:
        raise UnknownArgumentsError(
            f"a function must return a block, but {name} takes tensors ({', '.join(tensors)}) and computes an output; "
            "name a class, or a function that returns a torch.nn.Module with these weights."
        )
    unknown = [one["name"] for one in constructor if _is_unknown(one)]
    unknown = unknown or with_defaults(learner.recipe.build, learner.made).guessed
    if unknown := unknown or [one["name"] for one in constructor if meanings.CONFIG.search(one["name"])]:
        raise UnknownArgumentsError(
            f"the constructor's {', '.join(unknown)} cannot be inferred from the name ({raised(error)}); "
            f'give the line that builds it: --build "{name}(d_model, num_heads, ...)".'
        )
    raise error


def refuse_call(learner: Learner, error: LearnerError) -> None:
    """No call runs: raise UnknownArgumentsError if an argument that was inferred may be the reason."""
    _refuse_entry(learner, error)
    build, call = with_defaults(learner.recipe.build, learner.made), learner.recipe.call
    if names := [*build.guessed, *call.guessed]:
        raise UnknownArgumentsError(
            f"{', '.join(dict.fromkeys(names))} had to be guessed, and forward raises {raised(error)}; "
            f'correct the lines that build and call it: --build "{build.written()}" --call "{call.written()}".'
        ) from error


def refuse_given(option: str, line: Line, error: LearnerError) -> None:
    """Raise UnknownArgumentsError if it is the line that somebody gave which raises, and no code of the block."""
    if not reached(error):
        written = line.written()
        raise UnknownArgumentsError(f'{option} "{written}" raises {raised(error)}, before any code of the block runs.')


Step = tuple[str, str, int]
"""A file, a function and a line."""


def reached(error: LearnerError) -> list[Step]:
    """Where a call was in the learner's code when it raised, from the outermost function to the innermost."""
    frames = error.error.get("frames") or ()
    own = [one for one in frames if "/torch/" not in str(one["file"]) and one["file"] != "<string>"]
    return [(str(one["file"]), one["function"], int(one["line"] or 0)) for one in own]


def in_block(error: LearnerError) -> bool:
    """Whether the block itself was called: otherwise an argument of the line raises."""
    return bool(error.error.get("entered", True))


def is_further(error: LearnerError, other: LearnerError) -> bool:
    """Whether a call got further than another: to a later line of the function that both were in, or deeper from there.

    Lines of two functions say nothing of each other.
    """
    stages = [(one.stage, in_block(one)) for one in (error, other)]  # a constructor comes before forward, as its name
    if stages[0] != stages[1]:
        return stages[0] > stages[1]
    steps = [reached(one) for one in (error, other)]
    for here, there in zip(*steps, strict=False):
        if here != there:
            return here[:2] == there[:2] and here[2] > there[2]
    return len(steps[0]) > len(steps[1])


def refuse_sizes(learner: Learner, error: LearnerError) -> NoReturn:
    """Sizes do not reach the block: it may have those of a configuration that nobody hands in."""
    raise UnknownArgumentsError(
        f"its weights have the same shapes for every d_model, and forward raises {raised(error)}; "
        f'give a line that builds it with the sizes that are asked for: --build "{learner.made["name"]}(...)".'
    ) from error


def refuse_without(learner: Learner, names: Sequence[str], error: LearnerError) -> NoReturn:
    """Arguments have to be handed in although they are optional, and their names do not say what."""
    build, call = learner.recipe.build.written(), learner.recipe.call.written()
    line = f'--build "{build}"' if error.stage == "constructor" else f'--call "{call}"'
    raise UnknownArgumentsError(
        f"without its optional {', '.join(names)} it raises {raised(error)}, and their values cannot be inferred; add "
        f"them to the line: {line}."
    ) from error


def is_optional(one: Description) -> bool:
    """Whether a parameter is None by default."""
    return not one["required"] and one["default"] is None and not one["kind"].startswith(("VAR_", "POSITIONAL_ONLY"))


def is_its_own(error: LearnerError) -> bool:
    """Whether no argument can be the reason: an undefined name, or an attribute that the block lacks."""
    kind, message = error.error["type"], error.error["message"]
    if kind in ("NameError", "UnboundLocalError", "ModuleNotFoundError", "NotImplementedError", "NotInstalledError"):
        return True
    return kind == "AttributeError" and not re.search(r"'(NoneType|dict|int|float|str|tuple|list)'|[Cc]onfig", message)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that a block reads and the class of its configuration lacks. meant: one that is there, if nearly so."""

    name: str
    meant: str


def entry_that_lacks(learner: Learner, error: LearnerError) -> Entry | None:
    """The entry of the file's own configuration without which a constructor raises, if that is why."""
    found = LACKS_ENTRY.match(error.error["message"]) if error.error["type"] == "AttributeError" else None
    classes = {one["name"]: one for one in learner.made["helpers"] if one["kind"] == "configuration"}
    if found is None or found[1] not in classes or classes[found[1]]["of_transformers"]:
        return None
    names = [one["name"] for one in classes[found[1]]["parameters"] or ()]
    return Entry(found[2], next(iter(difflib.get_close_matches(found[2], names, 1, NEARLY)), ""))


def _refuse_entry(learner: Learner, error: LearnerError) -> None:
    """Raise UnknownArgumentsError if the block asks for what nobody but its author can give."""
    if (entry := entry_that_lacks(learner, error)) is not None and not entry.meant:
        raise UnknownArgumentsError(
            f"{error.error['message']}, which the block reads; if callers add it, give the line that builds the block "
            f'with it: --build "{learner.made["name"]}(config({entry.name}=VALUE))".'
        )
    if error.error["type"] == UnknownEntryError.__name__:
        raise UnknownArgumentsError(
            f"{error.error['message']}, and its value cannot be inferred from the name; give it in the line that "
            f'builds the block: --build "{learner.made["name"]}(config(NAME=VALUE))".'
        )
    if error.error["type"] == NoShapesError.__name__:
        made = f"made := {learner.made['name']}(d_model, num_heads, d_ff)"
        raise UnknownArgumentsError(
            f"{error.error['message']}; give a line that builds it and calls it once: "
            f'--build "({made}, made(torch.zeros(2, 7, d_model), ...))[0]".'
        )


def _is_unknown(one: Description) -> bool:
    meaning = meanings.meaning_of(one["name"], loosely=True)
    plain = meaning not in (None, "on", "off") or one["annotation"] in PLAIN or meanings.CONFIG.search(one["name"])
    return bool(one["required"]) and not plain
