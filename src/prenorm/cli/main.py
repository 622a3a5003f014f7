"""`prenorm COMMAND ...`: finds the command, runs it, and turns errors into one line and an exit code."""

import importlib
import io
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import PrenormError
from .exit_codes import BAD_USAGE, BROKEN_PIPE, INTERRUPTED

# A command is a module with parse(argv) -> flags and run(flags) -> exit code, imported when it is called.
COMMANDS = {
    "train": ("prenorm.cli.train", "Train a language model on text; without flags, on Python's own standard library."),
    "data": ("prenorm.cli.data", "Turn text into tokens once, for any number of trainings."),
    "generate": ("prenorm.cli.generate", "Write text with a trained model."),
    "report": ("prenorm.cli.report", "Write one HTML page about a run, or about several side by side."),
    "accept": (
        "prenorm.cli.accept",
        "Accept the changed files of a model's folder, and write its manifest anew.",
    ),
    "inspect": ("prenorm.cli.inspect", "Say what a model's folder holds, and why it would not be opened."),
    "export": ("prenorm.cli.export", "Write a trained model for llama.cpp, or as another Hugging Face folder."),
    "cost": ("prenorm.cli.cost", "Say what a model costs: parameters, operations, bytes, time and energy."),
    "check": ("prenorm.cli.check", "Name the faults of a Transformer block that somebody else wrote."),
    "lab": ("prenorm.cli.lab", "Measure why a block is built as it is: depth, norm, activation and more."),
    "challenge": ("prenorm.cli.challenge", "Build a Transformer block yourself, justify it, find a fault in it."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's), and return the exit code: 0 good, 1 found faults, 2 bad usage.

    Errors that prenorm raises on purpose, and errors of the file system, are one line on stderr.
    """
    _yield_idle_processors()
    name, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if name == "generate":
        _take_large_pages()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals that cannot show every character
    try:
        code = _run(name, rest)
        sys.stdout.flush()  # a broken pipe shows here, not when Python exits
        return code
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports it again at exit
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (PrenormError, OSError) as error:
        print(f"prenorm {name}: {error}", file=sys.stderr)
        return BAD_USAGE


def _yield_idle_processors() -> None:
    """Let waiting threads sleep soon. Must run before torch loads the OpenMP library, which reads this variable.

    By default they spin for milliseconds: while anything else computes, a training step on 2 cores then takes 20 to 40
    times as long. With this setting it takes twice as long, and on idle cores it is as fast as before.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _take_large_pages() -> None:
    """Make torch ask Linux for 2 MB pages for large tensors. Must run before torch allocates its first tensor.

    Decoding reads all weights for each token, mostly from memory, where looking up small pages takes time. Training
    gains nothing.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _run(name: str, argv: list[str]) -> int:
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"prenorm {__version__}")
        return 0
    if name not in COMMANDS:
        given = f"{name!r} is none" if name else "none is given"
        print(f"prenorm: a command is one of {', '.join(COMMANDS)}, but {given}.\n\n{_help()}", file=sys.stderr)
        return BAD_USAGE
    module, _ = COMMANDS[name]
    command = importlib.import_module(module)
    try:
        flags = command.parse(argv)
    except SystemExit as exit:  # --help, or bad flags, for which tyro has printed a message
        return exit.code if isinstance(exit.code, int) else BAD_USAGE
    return command.run(flags)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return f"usage: prenorm COMMAND ...\n\n{commands}\n\nprenorm COMMAND --help lists its flags; prenorm --version."
