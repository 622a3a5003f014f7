"""`prenorm lab depth | norm | activation | checkpointing | rope | attention`: experiments, measured on this machine."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..errors import ConfigError
from ..validation import check_size
from .flags import flags_from
from .trained_model import open_model

if TYPE_CHECKING:  # loads torch, which --help does not wait for
    from ..lab.depth.plan import Scale
    from ..lab.experiment import Experiment

Number = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Switch = Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The flags of every experiment."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """A folder for CSV, JSON, PNG and one HTML page: new or empty, or one in which this experiment was interrupted."""

    json: Switch = False
    """Print the findings as one JSON document, and nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep(Output):
    """The flags of every experiment with seeds."""

    seed: int = 0
    """The first seed; the others follow it."""

    workers: Number = None
    """Number of worker processes, of one thread each. Default: the number of cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth(Sweep):
    """Why does pre-norm train deeper? Eight variants, untrained and trained: ten minutes on two cores.

    After an interruption, by Ctrl-C or otherwise, the same command continues where it stopped.
    """

    quick: Switch = False
    """A first look, in a minute: shallower models, fewer steps and rates."""

    full: Switch = False
    """Every variant, depth, rate and start, with and without warm-up: hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm(Sweep):
    """Does RMSNorm reach LayerNorm's loss, and is it faster here?"""

    quick: Switch = False
    """A first look: fewer seeds, rates and steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Activation(Sweep):
    """Is SwiGLU better than GELU at equal parameters?"""

    quick: Switch = False
    """A first look: fewer seeds, rates and steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointing(Output):
    """What does activation checkpointing save in memory, and cost in time?"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope(Sweep):
    """Do scores see only distances, and what do bfloat16 tables do to far positions?"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Attention weights, the residual stream and the prediction after each layer: a page for one prompt."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A folder with config.json, weights and tokenizer.json: from prenorm train, or from Hugging Face."""

    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT")]
    """The text to run the model on, of at most 64 tokens."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("lab-attention")
    """A folder for the page, and its figures as JSON and CSV: new or empty, or one that this command wrote."""

    json: Switch = False
    """Print the figures as one JSON document, and nothing else."""


Flags = Depth | Norm | Activation | Checkpointing | Rope | Attention


def parse(argv: list[str]) -> Flags:
    """The flags of a command line. Exits with a message if they are invalid."""
    description = "Experiments with the parts of a Transformer block, measured on this machine."
    flags: Flags = flags_from(Flags, argv, prog="prenorm lab", description=description)
    return flags


def run(flags: Flags) -> int:
    """Run an experiment, print where its page is, and return the exit code."""
    return _attention(flags) if isinstance(flags, Attention) else _run_experiment(flags)


def _attention(flags: Attention) -> int:
    model, tokenizer = open_model(flags.run)
    from ..generation.text import TextGenerator
    from ..lab.attention import MOST_TOKENS, look
    from ..lab.attention_page import write_attention

    token_ids = TextGenerator(model, tokenizer).encode(flags.prompt)
    if len(token_ids) > MOST_TOKENS:
        raise ConfigError(
            f"a prompt may have at most {MOST_TOKENS} tokens, but has {len(token_ids)}; give a shorter one."
        )
    record = write_attention(flags.out, str(flags.run), flags.prompt, look(model, token_ids), token_ids, tokenizer)
    print(json.dumps(record, indent=2) if flags.json else f"The page: {record['page']}")
    return 0


def _run_experiment(flags: Depth | Norm | Activation | Checkpointing | Rope) -> int:
    workers = flags.workers if isinstance(flags, Sweep) else 1
    if workers is not None:
        check_size("workers", workers)
    if isinstance(flags, Sweep):
        check_size("seed", flags.seed, at_least=0)
    from ..lab.experiment import run_experiment
    from ..lab.sweep import Stopped, cores

    try:
        record = run_experiment(_experiment(flags), flags.out, workers=workers or cores())
    except Stopped as stopped:
        print(f"prenorm lab: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    if flags.json:
        print(json.dumps(record, indent=2, allow_nan=False))
    else:
        _show(record, flags.out)
    return 0


def _experiment(flags: Depth | Norm | Activation | Checkpointing | Rope) -> "Experiment":
    match flags:
        case Depth():
            from ..lab.depth.experiment import depth_experiment

            return depth_experiment(_scale(flags))
        case Norm():
            from ..lab import norm

            return norm.norm_experiment(norm.COMPARISON.at(flags.seed, quick=flags.quick))
        case Activation():
            from ..lab import activation

            return activation.activation_experiment(activation.COMPARISON.at(flags.seed, quick=flags.quick))
        case Checkpointing():
            from ..lab.checkpointing import checkpointing_experiment

            return checkpointing_experiment()
        case Rope():
            from ..lab.rope import rope_experiment

            return rope_experiment(flags.seed)


def _scale(flags: Depth) -> "Scale":
    from ..lab.depth.plan import DEFAULT, FULL, QUICK

    if flags.quick and flags.full:
        raise ConfigError("--quick and --full are two answers to one question, how much to measure; give one of them.")
    return (QUICK if flags.quick else FULL if flags.full else DEFAULT).from_seed(flags.seed)


def _show(record: dict[str, Any], out: Path) -> None:
    """A line for each claim, and where the page is."""
    for finding in record["findings"]:
        measured, (low, high) = finding["measured"], finding["interval"] or (None, None)
        number = "no number" if measured is None else f"{measured:.3g}"
        number += "" if low is None else f" [{low:.3g}, {high:.3g}]"
        print(f"{finding['verdict']:11}  {finding['claim']}: {number}")
    print(f"\nThe page with pictures and figures: {out / record['experiment']}.html")
