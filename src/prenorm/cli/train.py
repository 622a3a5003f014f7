"""`prenorm train`: train a language model on your text, or on Python's own standard library, with one command."""

import ast
import inspect
import json
import math
import os
import sys
import traceback
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, TypedDict, get_type_hints

import tyro

from ..config import ModelConfig
from ..distributed.launch import AlreadyTold, Launch, launched, told_once
from ..errors import ConfigError, PrenormError
from ..training.config import MODEL_FIELDS, RUN_FIELDS, TrainConfig, read_toml
from .exit_codes import BAD_USAGE, INTERRUPTED, UNEXPECTED
from .flags import flags_from

FLAGS = {"start_from": "from"}  # settings whose flag has another name: Python keeps this one for itself
LAYOUT = {"dp", "fsdp", "tp", "pp"}
OF_MUON = ("muon_lr", "muon_momentum", "embedding_lr", "head_lr", "vector_lr")


def field_docs(record: type) -> dict[str, str]:
    """The docstring under each field of a dataclass that has one."""
    (definition,) = ast.parse(dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, after in pairwise(definition.body):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _settings() -> Any:
    """A flag for each setting of a run and its model. Only given flags are returned, to distinguish them from a
    preset's defaults."""
    hints = get_type_hints(TrainConfig) | get_type_hints(ModelConfig)
    hints |= dict.fromkeys(("num_kv_heads", "head_dim", "d_ff"), int)  # Any in the record, which fills them in
    hints |= {"lr": float}
    docs = field_docs(ModelConfig) | field_docs(TrainConfig)
    demo = TrainConfig.from_fields({}).to_fields()
    flags = {}
    for name in [*RUN_FIELDS, *MODEL_FIELDS]:
        if name in ("rope_scaling", "family"):  # records; a --config file can have them
            continue
        default = demo.get(name, "")
        shown = "" if default in ("", []) else f"(demo: {default})"
        metavar = {"data": "PATH [PATH ...]", "start_from": "FOLDER"}.get(name)
        flags[FLAGS.get(name, name)] = Annotated[
            hints[name], tyro.conf.arg(help=docs.get(name, ""), help_behavior_hint=shown, metavar=metavar)
        ]
    return TypedDict("Settings", flags, total=False)  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainFlags:
    """Train a language model on text; without flags, on the source of Python's own standard library.

    A preset has a value for every setting, a --config file overrides some of them, --model the sizes, and flags win.
    torchrun --nproc-per-node 4 -m prenorm train ... is the same training in four processes: see --dp, --fsdp, --tp and
    --pp.
    After SIGTERM, SIGUSR1 or Ctrl-C the step is finished and a checkpoint written; the exit code is 128 plus the
    signal's number: 143, 138, 130.
    """

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A TOML file with settings, such as the config.toml of a run."""

    model: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """The sizes of a published model, such as llama-3-8b, instead of the preset's and the file's; an unknown name lists
    all of them. Its vocab_size is the maximum for a new tokenizer."""

    resume: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")] = False
    """Continue the run in --out exactly from its newest checkpoint."""

    json: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")] = False
    """Print the result as JSON on standard output, and everything else on standard error."""

    given: Annotated[dict[str, Any], tyro.conf.arg(constructor=_settings(), name="")] = field(default_factory=dict)
    """The settings given on the command line."""


def parse(argv: list[str]) -> TrainFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: TrainFlags = flags_from(TrainFlags, argv, prog="prenorm train", settings=_settings())
    return flags


def run(flags: TrainFlags) -> int:
    """Train, show the result, and return the exit code; after a signal it is 128 plus the signal's number.

    One of several processes does not return from an error: what it has begun with the others may have no end.
    """
    launch = launched()
    if launch.world_size == 1:
        return _train(flags, launch)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what its sockets have to say is said in our words
    try:
        return _train(flags, launch)
    except BaseException as error:
        code = _tell(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(flags: TrainFlags, launch: Launch) -> int:
    with told_once(launch):  # before torch is loaded, so that bad settings are reported at once
        config = config_of(flags)
        config.layout(launch.world_size)
    from ..training.device import hold_on_to_memory
    from ..training.display import Display
    from ..training.loop import train
    from ..training.signals import Stopped

    hold_on_to_memory()
    try:
        result = train(config, resume=flags.resume, display=Display(json=flags.json))
    except Stopped as stopped:
        print(f"prenorm train: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    if flags.json and launch.rank == 0:
        print(json.dumps(asdict(result), indent=2))
    return 0


def _tell(error: BaseException) -> int:
    """Show an error of one of several processes, unless another one shows it, and give the exit code."""
    cause, is_told = (error.__cause__, True) if isinstance(error, AlreadyTold) else (error, False)
    if isinstance(cause, KeyboardInterrupt):
        return INTERRUPTED
    if not isinstance(cause, PrenormError | OSError):
        traceback.print_exception(cause)
        return UNEXPECTED
    if not is_told:
        print(f"prenorm train: {cause}", file=sys.stderr)
    return 128 + getattr(cause, "signal_number", BAD_USAGE - 128)


def config_of(flags: TrainFlags) -> TrainConfig:
    """The settings of a command line: preset < --config file < --model < flags.

    A resumed run keeps all settings that are not given; its layout of processes as a whole, and where it fits them.
    Raises ConfigError.
    """
    named = {setting: flags.given[flag] for flag, setting in _settings_by_flag().items() if flag in flags.given}
    given = {**(read_toml(flags.config) if flags.config else {}), **_published(flags.model), **named}
    if flags.resume and (config := _resumed(given)):
        return _checked(config, named)
    if given.get("start_from") and isinstance(given["start_from"], str):
        from ..training.start import start_settings

        given = start_settings(given)
    return _checked(TrainConfig.from_fields(given), named)


def _resumed(given: dict[str, Any]) -> TrainConfig | None:
    """The settings of the run that is there already, with those that are given; None where there is no run."""
    preset = given.get("preset", "finetune" if given.get("start_from") else "demo")
    saved = Path(given.get("out") or f"runs/{preset}") / "config.toml"
    if not saved.is_file():
        return None
    kept = read_toml(saved)
    if not (LAYOUT.isdisjoint(given) and _fits(kept, launched().world_size)):
        kept = {name: value for name, value in kept.items() if name not in LAYOUT}
    return TrainConfig.from_fields({**kept, "out": str(saved.parent), **given})


def _fits(fields: dict[str, Any], world_size: int) -> bool:
    """Whether so many processes can have the layout in a run's settings; with dp=0 it takes what is left of them."""
    split = math.prod(fields.get(name, 1) for name in LAYOUT - {"dp"})
    return world_size == split * fields["dp"] if fields.get("dp") else world_size % split == 0


def _checked(config: TrainConfig, named: dict[str, Any]) -> TrainConfig:
    """The settings, unless one that is named has no say in them."""
    idle = [name for name in OF_MUON if name in named] if config.optimizer == "adamw" else []
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} is for optimizer=muon, but optimizer is adamw, whose learning rate is lr; leave it out."
        )
    return config


def _settings_by_flag() -> dict[str, str]:
    return {FLAGS.get(name, name): name for name in [*RUN_FIELDS, *MODEL_FIELDS]}


def _published(name: str | None) -> dict[str, Any]:
    """The sizes of a published model, without its dropout, which is a setting of the run."""
    if name is None:
        return {}
    return {field: value for field, value in ModelConfig.preset(name).to_dict().items() if field != "dropout"}
