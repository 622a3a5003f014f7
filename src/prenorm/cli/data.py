"""`prenorm data SOURCES --out FOLDER`: text to tokens, once, for any number of runs."""

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import DataError
from ..validation import check_number, check_size
from .flags import flags_from


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFlags:
    """Read text, split it, and leave its tokens in a folder, which `prenorm train --data FOLDER` takes.

    Text may be larger than memory. What was read, skipped and left out is said, and kept with the tokens.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCES")]
    """Files and folders: text and source files, .jsonl and .parquet with a text or with messages, all but the last also
    as .gz or .zst."""

    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """The new folder that the tokens are written to."""

    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="WEIGHTS", help_behavior_hint="")] = ()
    """How many of the tokens that a run reads come from each of the sources, as shares of their sum. Default: a
    document is read as often as any other."""

    tokenizer: Annotated[str, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = ""
    """A tokenizer.json to use, or a folder with one, whose chat template is used as well. Default: a new one is trained
    on the training text."""

    vocab_size: int = 4096
    """How many tokens a new tokenizer may have at most."""

    tokenizer_sample_mb: int = 16
    """A new tokenizer is trained on at most this much text, in megabytes."""

    heldout_one_in: int = 20
    """One document in so many is held out, chosen by a hash."""

    json: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")] = False
    """Print what was done as JSON, and everything else on standard error."""


def parse(argv: list[str]) -> DataFlags:
    """The flags in a command line. Exits with a message when they are none."""
    flags: DataFlags = flags_from(DataFlags, argv, prog="prenorm data")
    return flags


def run(flags: DataFlags) -> int:
    """Write the folder, and say what is in it. Gives the exit code."""
    _check(flags)
    from ..training.data.prepare import prepare
    from ..training.data.reading import count
    from ..training.display import Display

    display = Display(json=flags.json)
    with display.working("reading the text"):
        folder = prepare(
            Path(flags.out),
            flags.sources,
            tokenizer=flags.tokenizer,
            vocab_size=flags.vocab_size,
            sample_mb=flags.tokenizer_sample_mb,
            one_in=flags.heldout_one_in,
            weights=flags.weights,
            say=display.say,
            leave_out=Path(flags.out),
        )
    summary = folder.summary
    sides = {"train": folder.train, "heldout": folder.heldout}
    tokens = {name: len(stream.tokens) for name, stream in sides.items()}
    if flags.json:
        fields = ("vocab_size", "sources", "settings", "read", "said", "sha256")
        print(
            json_format.dumps(
                {"out": flags.out, "tokens": tokens, **{name: summary[name] for name in fields}}, indent=2
            )
        )
        return 0
    listed = " and ".join(
        f"{count(len(sides[name].starts) - 1, 'document')} of {count(tokens[name], 'token')}" for name in sides
    )
    display.say(
        f"{flags.out} holds {listed} to train on and to hold out. To train:\n\n  prenorm train --data {flags.out}\n"
    )
    return 0


def _check(flags: DataFlags) -> None:
    """Bad numbers are told before torch is loaded. Raises ConfigError and DataError."""
    if not flags.sources:
        raise DataError("prenorm data takes at least one file or folder of text.")
    check_size("vocab_size", flags.vocab_size, at_least=257)
    check_size("tokenizer_sample_mb", flags.tokenizer_sample_mb)
    check_size("heldout_one_in", flags.heldout_one_in, at_least=2)
    for weight in flags.weights:
        check_number("each of weights", weight, above=0.0)
