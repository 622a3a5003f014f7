"""The checks of a run's settings: each alone, and those that must agree."""

from collections.abc import Mapping
from typing import Any, get_args

from ..errors import ConfigError
from ..validation import check_flag, check_number, check_size, did_you_mean, nearest_divisor


def check_run(config: Any) -> None:
    """Raise ConfigError unless a run can have the settings of this TrainConfig. Its choices are checked already."""
    for name in ("out", "tokenizer", "start_from", "sample_prompt", "device"):
        _check_text(name, getattr(config, name))
    for name in ("compile", "checkpoint_activations", "tensorboard"):
        check_flag(name, getattr(config, name))
    check_size("checkpoint_activations_every", config.checkpoint_activations_every)
    for name in ("steps", "context", "batch_size", "tokenizer_sample_mb", "eval_batches", "keep_checkpoints"):
        check_size(name, getattr(config, name))
    for name in ("fsdp", "tp", "pp", "pp_stages"):
        check_size(name, getattr(config, name))
    every = ("eval_every", "early_stop", "sample_every", "checkpoint_every")
    for name in ("seed", "short_context", "micro_batch_size", "warmup_steps", "dp", *every):
        check_size(name, getattr(config, name), at_least=0)
    rates = ("muon_lr", "embedding_lr", "head_lr", "vector_lr", *(() if config.lr is None else ("lr",)))
    for name in (*rates, "adam_eps", "weight_decay", "grad_clip", "log_seconds"):
        check_number(name, getattr(config, name), at_least=0.0)
    check_number("timeout", config.timeout, above=0.0)
    for name in ("muon_momentum", "eval_overlap", "ema_decay"):
        _check_share(name, getattr(config, name), below=True)
    for name in ("decay_share", "short_share", "final_lr_share"):
        _check_share(name, getattr(config, name))
    if not isinstance(config.data, tuple):
        raise ConfigError(f"data must be a list of strings, not {config.data!r}.")
    for part in config.data:
        _check_text("each of data", part)
    check_size("heldout_one_in", config.heldout_one_in, at_least=2)
    if not isinstance(config.data_weights, tuple):
        raise ConfigError(f"data_weights must be a list of numbers, not {config.data_weights!r}.")
    for weight in config.data_weights:
        check_number("each of data_weights", weight, above=0.0)
    betas = config.adam_betas
    if not isinstance(betas, tuple) or len(betas) != 2:
        shown = list(betas) if isinstance(betas, tuple) else betas
        raise ConfigError(f"adam_betas must be two numbers, such as 0.9 and 0.95, not {shown!r}.")
    for beta in betas:
        _check_share("each of adam_betas", beta, below=True)
    _check_together(config)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise ConfigError unless the value is one of a Literal's."""
    if value not in get_args(choices):
        raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}.")


def check_names(given: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise ConfigError for names that are not known, with the known one that is nearest."""
    unknown = sorted(given.keys() - known)
    if not unknown:
        return
    hint = did_you_mean(unknown[0], sorted(known))
    raise ConfigError(f"{where} has no field named {', '.join(unknown)}.{hint}")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {value!r}.")
    if not value.isprintable():
        raise ConfigError(f"{name} must have printable characters only, or config.toml could not hold it: {value!r}.")


def _check_share(name: str, value: Any, *, below: bool = False) -> None:
    check_number(name, value, at_least=0.0)
    if value > 1 or (below and value == 1):
        raise ConfigError(f"{name} must be between 0 and 1{' (1 excluded)' if below else ''}, not {value!r}.")


def _check_together(config: Any) -> None:
    if config.lr is not None and config.optimizer == "muon":
        raise ConfigError(
            f"lr is the learning rate of optimizer=adamw, but optimizer is muon and lr {config.lr}; Muon has muon_lr, "
            "embedding_lr, head_lr and vector_lr."
        )
    if config.early_stop and not config.eval_every:
        raise ConfigError(
            f"early_stop counts evaluations during the run, but early_stop is {config.early_stop} and eval_every 0; "
            "eval_every=100 would do."
        )
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
