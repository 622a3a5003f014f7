"""What a training run is: every number and path that fixes it, checked once, to TOML and back unchanged."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w

from ..config import ModelConfig
from ..errors import ConfigError
from ..validation import check_flag, check_number, check_size, did_you_mean, nearest_divisor
from .presets import PRESETS, PresetName

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. `TrainConfig.from_fields` fills in the rest of a preset; the docstrings are the flags' help.

    Raises ConfigError when no run can have these numbers.
    """

    preset: PresetName = "demo"
    """The set of numbers to start from; a --config file changes some of them, and flags have the last word."""

    out: str = ""
    """The folder that the run is written to. Default: runs/ and the preset's name."""

    seed: int = 0
    """Fixes the first weights, the order of the text and the dropout."""

    data: tuple[str, ...] = ()
    """Files and folders to learn from: text and source files, .jsonl and .parquet with a text or with messages, all but
    the last also as .gz or .zst; or folders that `prenorm data` wrote. Default: the source of Python's own library."""

    data_weights: tuple[float, ...] = ()
    """How many of the tokens that are read come from each path of data, as shares of their sum. Default: a document is
    read as often as any other."""

    heldout_one_in: int = 20
    """One document in so many is held out, chosen by a hash. What `prenorm data` wrote is split already."""

    tokenizer: str = ""
    """A tokenizer.json to use, or a folder with one. Default: a byte-level BPE of vocab_size tokens is trained on the
    training text."""

    tokenizer_sample_mb: int = 16
    """The new tokenizer is trained on at most this much text, in megabytes, drawn from the training documents."""

    model: ModelConfig
    """The sizes of the model. Its vocab_size is what a new tokenizer may have at most."""

    context: int = 256
    """Tokens in a training sequence."""

    short_context: int = 0
    """Tokens that a sequence is cut into pieces of in the first steps, which makes them cheaper. 0 cuts nothing."""

    short_share: float = 0.5
    """The share of the steps that short_context is for."""

    steps: int
    """Optimiser steps."""

    batch_size: int = 8
    """Sequences in an optimiser step, over all processes."""

    micro_batch_size: int = 0
    """Sequences in one forward pass: gradients are summed up to batch_size. Default: all of them at once."""

    muon_lr: float = 0.02
    """Learning rate of Muon, which trains the blocks' matrices."""

    muon_momentum: float = 0.95
    """Momentum of Muon."""

    embedding_lr: float = 0.01
    """Learning rate of AdamW for the embedding (and for the head that is tied to it)."""

    head_lr: float = 0.003
    """Learning rate of AdamW for an untied head."""

    vector_lr: float = 0.01
    """Learning rate of AdamW for norm weights and biases."""

    adam_betas: tuple[float, float] = (0.9, 0.95)
    """The two decay rates of AdamW's averages."""

    adam_eps: float = 1e-10
    """AdamW's smallest divisor: below the gradients of rare tokens, which are small."""

    weight_decay: float = 0.0
    """Decoupled weight decay of all matrices; vectors have none."""

    grad_clip: float = 1.0
    """The largest norm of the whole gradient, which is scaled down to it. 0 clips nothing."""

    warmup_steps: int = 20
    """Steps in which the learning rates rise from 0 to their full values."""

    decay_share: float = 0.4
    """The last share of the steps, over which the learning rates fall to 0 in a straight line."""

    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1, ... auto takes a GPU when there is one."""

    dtype: Dtype = "auto"
    """Number format of the matrix products; weights stay in float32. auto: bfloat16 where the hardware has it."""

    compile: bool = False
    """Compile each block with torch.compile, which takes a minute at the start and needs a C++ compiler on a CPU."""

    checkpoint_activations: bool = False
    """Keep only what goes into each block, and compute what is inside again in the backward pass: less memory for about
    a third more time, and the same numbers."""

    checkpoint_activations_every: int = 1
    """With checkpoint_activations: do so for every how many-th block."""

    eval_every: int = 100
    """Steps between evaluations on a fixed part of the held-out text. 0 leaves only the full one at the end."""

    eval_batches: int = 8
    """Batches of held-out text in those evaluations, spread over all of it."""

    eval_overlap: float = 0.5
    """The share of each held-out window that repeats text from the one before it, read but not scored again."""

    checkpoint_every: int = 500
    """Steps between checkpoints. 0 leaves only the last one."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    log_seconds: float = 10.0
    """Seconds between lines of progress when the output is not a terminal."""

    def __post_init__(self) -> None:
        _check_choice("preset", self.preset, PresetName)
        _check_choice("dtype", self.dtype, Dtype)
        for name in ("out", "tokenizer", "device"):
            _check_text(name, getattr(self, name))
        for name in ("compile", "checkpoint_activations"):
            check_flag(name, getattr(self, name))
        check_size("checkpoint_activations_every", self.checkpoint_activations_every)
        for name in ("steps", "context", "batch_size", "tokenizer_sample_mb", "eval_batches", "keep_checkpoints"):
            check_size(name, getattr(self, name))
        for name in ("seed", "short_context", "micro_batch_size", "warmup_steps", "eval_every", "checkpoint_every"):
            check_size(name, getattr(self, name), at_least=0)
        rates = ("muon_lr", "embedding_lr", "head_lr", "vector_lr")
        for name in (*rates, "adam_eps", "weight_decay", "grad_clip", "log_seconds"):
            check_number(name, getattr(self, name), at_least=0.0)
        for name in ("muon_momentum", "eval_overlap"):
            _check_share(name, getattr(self, name), below=True)
        for name in ("decay_share", "short_share"):
            _check_share(name, getattr(self, name))
        if not isinstance(self.data, tuple):
            raise ConfigError(f"data must be a list of strings, not {self.data!r}.")
        for part in self.data:
            _check_text("each of data", part)
        check_size("heldout_one_in", self.heldout_one_in, at_least=2)
        if not isinstance(self.data_weights, tuple):
            raise ConfigError(f"data_weights must be a list of numbers, not {self.data_weights!r}.")
        for weight in self.data_weights:
            check_number("each of data_weights", weight, above=0.0)
        object.__setattr__(self, "data_weights", tuple(map(float, self.data_weights)))
        betas: Any = self.adam_betas
        if not isinstance(betas, tuple) or len(betas) != 2:
            raise ConfigError(f"adam_betas must be two numbers, such as 0.9 and 0.95, not {_listed(betas)!r}.")
        for beta in betas:
            _check_share("each of adam_betas", beta, below=True)
        object.__setattr__(self, "out", self.out or f"runs/{self.preset}")
        _check_together(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """The run that a preset and `fields` describe: those of this record and of ModelConfig, in one flat mapping.

        Raises ConfigError for a name that neither record has.
        """
        preset = fields.get("preset", "demo")
        _check_choice("preset", preset, PresetName)
        merged = {**PRESETS[preset], **fields}
        merged = {name: tuple(value) if isinstance(value, list) else value for name, value in merged.items()}
        _check_names(merged, {*RUN_FIELDS, *MODEL_FIELDS}, "a run")
        model = {name: merged.pop(name) for name in MODEL_FIELDS if name in merged}
        context = merged.get("context", RUN_FIELDS["context"].default)
        check_size("context", context)
        model.setdefault("max_seq_len", context)
        return cls(**merged, model=ModelConfig.from_dict(model))

    def to_fields(self) -> dict[str, Any]:
        """The flat mapping from which `from_fields` makes this record again. Fields that are None are left out."""
        return _flat(_to_toml(self))


RUN_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig) if field.name != "model"}
MODEL_FIELDS = {field.name: field for field in dataclasses.fields(ModelConfig)}


def config_to_toml(config: TrainConfig) -> str:
    """The run as TOML text: its own fields, then the model's in a table of their own."""
    return tomli_w.dumps(_to_toml(config))


def read_toml(path: Path) -> dict[str, Any]:
    """The fields in a file that `config_to_toml` or a person wrote, as `TrainConfig.from_fields` takes them.

    Raises ConfigError for a file that cannot be read, is not TOML, or has a key that no run has.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not TOML: {error}.") from error
    model = table.get("model", {})
    if not isinstance(model, dict):
        raise ConfigError(f"model in {path} must be a table, [model], not {model!r}.")
    _check_names(table, {*RUN_FIELDS, "model"}, str(path))
    _check_names(model, set(MODEL_FIELDS), f"[model] in {path}")
    return _flat(table)


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Every field, the model's among them, whose value is not the same: its name, the old value and the new one."""
    before, after = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def _to_toml(config: TrainConfig) -> dict[str, Any]:
    """TOML has no null: a None is left out, which reads back as the default, None."""
    return dataclasses.asdict(
        config, dict_factory=lambda pairs: {name: _listed(value) for name, value in pairs if value is not None}
    )


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """The model's fields beside the run's: no name is in both records."""
    return {**{name: value for name, value in table.items() if name != "model"}, **table.get("model", {})}


def _listed(value: Any) -> Any:
    """TOML and JSON have lists; the record, which does not change, has tuples."""
    return list(value) if isinstance(value, tuple) else value


def _check_names(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(given.keys() - known)
    if not unknown:
        return
    hint = did_you_mean(unknown[0], sorted(known))
    raise ConfigError(f"{where} has no field named {', '.join(unknown)}.{hint}")


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}.")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {value!r}.")
    if not value.isprintable():
        raise ConfigError(f"{name} must have printable characters only, or config.toml could not hold it: {value!r}.")


def _check_share(name: str, value: Any, *, below: bool = False) -> None:
    check_number(name, value, at_least=0.0)
    if value > 1 or (below and value == 1):
        raise ConfigError(f"{name} must be between 0 and 1{' (1 excluded)' if below else ''}, not {value!r}.")


def _check_together(config: TrainConfig) -> None:
    if config.batch_size % (config.micro_batch_size or config.batch_size):
        nearest = nearest_divisor(config.batch_size, config.micro_batch_size)
        raise ConfigError(
            f"micro_batch_size must divide batch_size, but {config.micro_batch_size} does not divide "
            f"{config.batch_size}; micro_batch_size={nearest} would."
        )
    if config.context % (config.short_context or config.context):
        raise ConfigError(
            f"short_context must divide context, but {config.short_context} does not divide {config.context}; "
            f"context={config.short_context * max(1, config.context // config.short_context)} would do."
        )
    if config.context > config.model.max_seq_len:
        raise ConfigError(
            f"context must not be greater than the model's max_seq_len, but {config.context} is greater than "
            f"{config.model.max_seq_len}; max_seq_len={config.context} would do."
        )
    if not config.tokenizer and config.model.vocab_size < 257:
        raise ConfigError(
            f"vocab_size must be at least 257 (every byte, and the end of a text), not {config.model.vocab_size}."
        )
