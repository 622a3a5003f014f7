"""`prenorm challenge new DIR | submit [DIR] | status [DIR]`: build a block, justify it, find a fault in it."""

import json
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..challenge.status import STAGES, status
from ..challenge.workspace import new_workspace, open_workspace
from ..errors import ConfigError
from .flags import flags_from

if TYPE_CHECKING:  # loads torch, which --help does not wait for
    from ..challenge.build import Build
    from ..challenge.justify import Asked
    from ..challenge.submit import Outcome

Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[DIR]", help_behavior_hint="(here)")]
Json = Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True, slots=True)
class New:
    """Write a workspace: a file to fill in, its tests, and what to do."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder that is new or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """Run the next stage of the challenge: build, justify or harden."""

    folder: Folder = Path()
    """The workspace."""

    answers: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Answers to the open questions, as JSON: {"<id>": <number or letter>, ...}."""

    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Draw the same questions and the same fault every time. Default: others each time."""

    json: Json = False
    """Print one JSON document that includes the open questions, and ask nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Show how far a workspace has got."""

    folder: Folder = Path()
    """The workspace."""

    json: Json = False
    """Print it as JSON."""


Flags = New | Submit | Status


def parse(argv: list[str]) -> Flags:
    """The flags of a command line. Exits with a message if they are invalid."""
    description = "Build a Transformer block, justify it, and find a fault in it."
    flags: Flags = flags_from(Flags, argv, prog="prenorm challenge", description=description)
    return flags


def run(flags: Flags) -> int:
    """Write a workspace, go on with one, or say how far it is. 0: well so far; 1: faults or wrong answers."""
    match flags:
        case New(folder=folder):
            new_workspace(folder)
            print(
                f"{folder / 'README.md'} says what to do; {folder / 'cs336_basics' / 'layers.py'} is yours to fill in."
            )
            return 0
        case Submit():
            return _submit(flags)
        case Status():
            return _status(flags)


def _submit(flags: Submit) -> int:
    workspace = open_workspace(flags.folder)
    from ..challenge.submit import read_answers, submit

    answers = None if flags.answers is None else read_answers(flags.answers)
    asks = answers is None and not flags.json and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if not flags.json and sys.stderr.isatty():
        print("Running your code; this takes some seconds ...", file=sys.stderr)
    outcome = submit(workspace, answers=answers, ask=_ask if asks else None, seed=flags.seed)
    if flags.json:
        print(json.dumps(outcome.to_json(), indent=2))
    else:
        _print(outcome, flags.folder)
    return 0 if outcome.good else 1


def _status(flags: Status) -> int:
    found = status(open_workspace(flags.folder))
    if flags.json:
        print(json.dumps(found, indent=2))
        return 0
    for stage in STAGES:
        print(f"{stage:8} {found[stage]}")
    print("All three stages are passed." if found["stage"] == "done" else f"Next: {found['stage']}.")
    return 0


def _ask(question: "Asked") -> Any:
    """An answer from the terminal, asked for until it can be read; None at the end of input."""
    print(f"\n{_put(question)}")
    while True:
        try:
            given = input("> ").strip()
        except EOFError:
            return None
        try:
            return question.read(given)
        except ConfigError as error:
            print(error)


def _put(question: "Asked") -> str:
    choices = [f"  {letter}) {text}" for letter, text in zip(string.ascii_lowercase, question.choices, strict=False)]
    return "\n".join([f"[{question.id}] {question.text}", *choices])


def _print(outcome: "Outcome", folder: Path) -> None:
    if outcome.build is not None:
        _print_build(outcome.build)
    for one in outcome.graded:
        if one.right:
            print(f"[{one.id}] {one.given}: right.")
        else:
            print(f"[{one.id}] {one.given}: no, it is {one.answer}. {one.explanation}")
    if outcome.stage == "justify":
        print(f"\nJustify: {len(outcome.questions)} questions are open.")
        for question in outcome.questions:
            print(f"\n{_put(question)}")
        example = ", ".join(f'"{one.id}": ...' for one in outcome.questions[:2])
        print(
            f"\nIn a terminal, submit asks them. Or: prenorm challenge submit {folder} --answers FILE, FILE: "
            f"{{{example}}}"
        )
    if outcome.harden is not None:
        print(f"\nHarden: {outcome.harden}")
    if outcome.stage == "done":
        print("All three stages are passed.")


def _print_build(build: "Build") -> None:
    from ..challenge.build import BLOCK, told

    for part in build.parts:
        print(f"{part.name:16} {part.state}" + (f": {part.reason}" if part.reason else ""))
    if build.verdict is None:
        print(f"{BLOCK:16} not written yet\n\nBuild: fill in {BLOCK}, and submit again.")
        return
    print(f"{BLOCK:16} {'right' if build.verdict.passed else 'wrong'}")
    for finding in build.verdict.findings:
        print(f"\n{told(finding)}")
    print("\nBuild: passed." if build.passed else "\nBuild: not yet.")
