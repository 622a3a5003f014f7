"""What a training run is: every number and path that fixes it, checked once, to TOML and back unchanged."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from ..config import ModelConfig
from ..distributed.layout import Layout
from ..errors import ConfigError
from ..validation import check_size
from .config_checks import check_choice, check_names, check_run
from .presets import PRESETS, PresetName

Dtype = Literal["auto", "float32", "bfloat16", "bfloat16-pure", "float16"]
OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["linear", "cosine", "wsd"]
OnNan = Literal["stop", "skip"]

ADAMW_LR = 0.001  # unless lr says otherwise


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

    start_from: str = ""
    """A folder with a model to go on from, instead of a new one: a run's, or one in Hugging Face's layout. Its sizes
    and its tokenizer are the run's, and its weights become float32. Without --preset the preset is finetune."""

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

    optimizer: OptimizerName = "muon"
    """muon: Muon for the blocks' matrices and AdamW for the rest, each with a learning rate of its own. adamw: AdamW
    for everything, with the learning rate lr."""

    lr: float | None = None
    """The learning rate of --optimizer adamw (default: 0.001). Muon has the four that follow instead."""

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
    """Decoupled weight decay of the blocks' matrices and an untied head; embeddings, norms and biases have none."""

    grad_clip: float = 1.0
    """The largest norm of the whole gradient, which is scaled down to it. 0 clips nothing."""

    schedule: Schedule = "linear"
    """How the learning rates go after the warm-up. linear: level, then down in a straight line over decay_share. wsd:
    level, then down as 1 - sqrt over decay_share. cosine: down along half a cosine from the warm-up on."""

    warmup_steps: int = 20
    """Steps in which the learning rates rise from 0 to their full values."""

    decay_share: float = 0.4
    """The last share of the steps, over which linear and wsd bring the learning rates down."""

    final_lr_share: float = 0.0
    """The share of the full learning rates that the schedule falls to."""

    ema_decay: float = 0.0
    """Keep a moving average of the weights with this decay, such as 0.999: it is evaluated beside them and written to
    the folder ema of the run. 0 keeps none."""

    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1, ... auto takes a GPU when there is one."""

    dtype: Dtype = "auto"
    """Number format of the matrix products; trained weights stay in float32. auto: bfloat16 where the hardware has it,
    else float32. bfloat16-pure: everything between tokens and loss in bfloat16, on a rounded copy of the weights.
    float16: with dynamic loss scaling."""

    on_nan: OnNan = "stop"
    """What happens where a loss or gradient is not finite: stop the run, or skip the step. The weights are left as they
    are, and the batch is written to the folder batches of the run either way."""

    compile: bool = False
    """Compile each block with torch.compile, which takes a minute at the start and needs a C++ compiler on a CPU."""

    checkpoint_activations: bool = False
    """Keep only what goes into each block, and compute what is inside again in the backward pass: less memory for about
    a third more time, and the same numbers."""

    checkpoint_activations_every: int = 1
    """With checkpoint_activations: checkpoint every k-th block."""

    eval_every: int = 100
    """Steps between evaluations on a fixed part of the held-out text. 0 leaves only the full one at the end."""

    eval_batches: int = 8
    """Batches of held-out text in those evaluations, spread over all of it."""

    eval_overlap: float = 0.5
    """The share of each held-out window that repeats text from the one before it, read but not scored again."""

    early_stop: int = 0
    """End the run after this many evaluations in a row without a lower held-out loss, and keep the weights that had the
    lowest. 0 takes all steps and keeps the last weights."""

    sample_every: int = 0
    """Steps between texts that the model writes while it learns, shown and kept in samples.jsonl. 0 leaves only the one
    at the end."""

    sample_prompt: str = ""
    """What these texts go on from. Default: a beginning that suits the text."""

    checkpoint_every: int = 500
    """Steps between checkpoints. 0 leaves only the last one."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    log_seconds: float = 10.0
    """Seconds between lines of progress when the output is not a terminal."""

    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, to the folder tensorboard of the run (extra: tensorboard)."""

    dp: int = 0
    """Under torchrun: copies of the model, each with rows of its own. Default: what fsdp, tp and pp leave of the
    processes."""

    fsdp: int = 1
    """Processes with rows of their own that share out parameters, gradients and the optimiser's state (FSDP2)."""

    tp: int = 1
    """Processes that share out the matrices of each layer, and the sequence between them."""

    pp: int = 1
    """Stages of consecutive layers, each in processes of its own; micro_batch_size makes the micro-batches."""

    pp_stages: int = 1
    """Stages that each process of a pipeline has, in turn with the others (interleaved 1F1B): less idle time, more
    messages."""

    timeout: float = 300.0
    """Seconds that the processes of a run wait for one of them before they give it up for lost; longer than a
    micro-batch, and than writing a checkpoint."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_run(self)
        object.__setattr__(self, "data_weights", tuple(map(float, self.data_weights)))
        object.__setattr__(self, "out", self.out or f"runs/{self.preset}")
        if self.optimizer == "adamw" and self.lr is None:
            object.__setattr__(self, "lr", ADAMW_LR)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """The run that a preset and `fields` describe: those of this record and of ModelConfig, in one flat mapping.

        The preset finetune has no sizes: `prenorm.training.start.start_fields` gives those of a folder.
        Raises ConfigError for a name that neither record has.
        """
        preset = fields.get("preset", "demo")
        check_choice("preset", preset, PresetName)
        merged = {**PRESETS[preset], **fields}
        if merged.get("optimizer") != "adamw" and "lr" not in fields:  # a preset's is AdamW's
            merged.pop("lr", None)
        merged = {name: tuple(value) if isinstance(value, list) else value for name, value in merged.items()}
        check_names(merged, {*RUN_FIELDS, *MODEL_FIELDS}, "a run")
        model = {name: merged.pop(name) for name in MODEL_FIELDS if name in merged}
        context = merged.get("context", RUN_FIELDS["context"].default)
        check_size("context", context)
        model.setdefault("max_seq_len", context)
        if preset == "finetune" and not merged.get("start_from"):
            raise ConfigError("the preset finetune goes on from a model, but none is named; --from FOLDER names one.")
        return cls(**merged, model=ModelConfig.from_dict(model))

    def layout(self, world_size: int, model: ModelConfig | None = None) -> Layout:
        """How this many processes share the run. Raises ConfigError where they cannot.

        model: the sizes, once the tokenizer has fixed the vocabulary.
        """
        split = self.fsdp * self.tp * self.pp
        layout = Layout(dp=self.dp or max(1, world_size // split), fsdp=self.fsdp, tp=self.tp, pp=self.pp)
        if world_size == 1 < layout.world_size:
            raise ConfigError(
                f"dp x fsdp x tp x pp must be the number of processes, but {layout} takes {layout.world_size}, and "
                f"there is 1; start them with torchrun --nproc-per-node {layout.world_size} -m prenorm train ..."
            )
        if self.pp > 1:
            self._check_pipeline(layout, model or self.model)
        layout.check(
            model or self.model,
            world_size=world_size,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            context=self.short_context or self.context,
        )
        return layout

    def _check_pipeline(self, layout: Layout, model: ModelConfig) -> None:
        """What the layout alone does not say."""
        if self.dtype == "bfloat16-pure":
            raise ConfigError(f"dtype bfloat16-pure is for pp 1, but pp is {self.pp}; --dtype bfloat16 would do.")
        if self.pp_stages > 1 and layout.pp * self.pp_stages > model.num_layers:
            raise ConfigError(
                f"each stage must have a layer, but pp x pp_stages = {layout.pp} x {self.pp_stages} is more than "
                f"num_layers = {model.num_layers}; --pp-stages {max(1, model.num_layers // layout.pp)} would do."
            )
        count = self.batch_size // layout.data_ranks // (self.micro_batch_size or self.batch_size)
        if self.pp_stages > 1 and count % layout.pp:
            raise ConfigError(
                f"with pp_stages, pp must divide the number of micro-batches of a process, but {layout.pp} does not "
                f"divide {count}; --pp-stages 1 would do."
            )

    def to_fields(self) -> dict[str, Any]:
        """The flat mapping from which `from_fields` makes this record again. Fields that are None are left out."""
        return _flat(_to_toml(self))


CHOICES = {"preset": PresetName, "dtype": Dtype, "optimizer": OptimizerName, "schedule": Schedule, "on_nan": OnNan}
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
    check_names(table, {*RUN_FIELDS, "model"}, str(path))
    check_names(model, set(MODEL_FIELDS), f"[model] in {path}")
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
