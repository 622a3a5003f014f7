"""`prenorm accept FOLDER`: takes the files of a folder as they are, where another program has changed them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .flags import flags_from


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptFlags:
    """Take the files of a model's folder as they are now: they are hashed, and the folder's manifest is written anew.

    For a folder that prenorm refuses because a file is not as it was saved, when you know what changed it.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder with config.json and weights, or a checkpoint of a run."""


def parse(argv: list[str]) -> AcceptFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: AcceptFlags = flags_from(AcceptFlags, argv, prog="prenorm accept")
    return flags


def run(flags: AcceptFlags) -> int:
    """Write the manifest, and say what is not as it was. Gives the exit code."""
    from ..checkpoint.manifest import accept  # loads torch, which --help does not wait for

    changes = accept(flags.folder)
    for change in changes:
        print(change)
    print(f"{flags.folder} is taken as it is" + ("." if changes else ": nothing had changed."))
    return 0
