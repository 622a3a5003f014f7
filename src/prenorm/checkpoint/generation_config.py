"""What a folder's generation_config.json asks of a generation, in our words, or why it cannot be given."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..generation.sampling import Sampling
from ..validation import check_flag, check_number, check_size
from .files import IN_THE_FILE, file_in, json_text, listed, name_text, read_json

GENERATION_CONFIG = "generation_config.json"

# What transformers 5.23 takes where it samples and the file is silent.
_TOP_K = 50

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_READ = {*_SAMPLING, "do_sample", "repetition_penalty", "max_new_tokens", "max_length", "stop_strings", "eos_token_id"}

# Without influence on the tokens: where the file came from, ids for padding, what a call returns, caches, ways to be
# faster with the same tokens, and settings of beams, which are refused as num_beams.
_NO_INFLUENCE = """
    transformers_version _from_model_config bos_token_id pad_token_id decoder_start_token_id use_cache
    cache_implementation cache_config max_cache_len output_attentions output_hidden_states output_scores
    output_logits return_dict_in_generate return_legacy_cache is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit assistant_lookbehind
    target_lookbehind assistant_ensemble_weight prompt_lookup_num_tokens max_matching_ngram_size speculation_type
    use_mtp compile_config disable_compile continuous_batching_config low_memory prefill_chunk_size early_stopping
    length_penalty renormalize_logits trust_remote_code
"""

# Without influence at these values; a null says nothing in any key.
_HARMLESS_VALUES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "num_beams": (1,),
        "num_beam_groups": (1,),
        "num_return_sequences": (1,),
        "diversity_penalty": (0,),
        "typical_p": (1,),
        "top_h": (1,),
        "epsilon_cutoff": (0,),
        "eta_cutoff": (0,),
        "no_repeat_ngram_size": (0,),
        "encoder_no_repeat_ngram_size": (0,),
        "encoder_repetition_penalty": (1,),
        "penalty_alpha": (0,),
        "guidance_scale": (1,),
        "min_length": (0,),
        "min_new_tokens": (0,),
        "bad_words_ids": ([],),
        "suppress_tokens": ([],),
        "begin_suppress_tokens": ([],),
        "token_healing": (False,),
        "remove_invalid_values": (False,),
    }
)


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """The fields of generation_config.json; None where there is no such file. Raises CheckpointError."""
    path = folder / GENERATION_CONFIG
    return read_json(file_in(folder, path.name)) if path.exists() or path.is_symlink() else None


def settings_from_hugging_face(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The options of `TransformerLM.stream` that a generation config gives, and max_length: prompt and reply together.

    As in transformers, do_sample decides whether temperature, top_k, top_p and min_p count; without it the most
    probable token is taken. Raises CheckpointError, naming every key whose meaning cannot be given.
    """
    if foreign := list(_foreign(fields)):
        raise CheckpointError(
            f"{source}: {listed(foreign)}, which prenorm does not have; --ignore-generation-config generates without "
            "the settings of this file."
        )
    said = {key: value for key, value in fields.items() if value is not None and key in _READ}
    try:
        check_flag("do_sample", said.get("do_sample", False), spelling=IN_THE_FILE)
        for key in ("max_new_tokens", "max_length"):
            if key in said:
                check_size(key, said[key], spelling=IN_THE_FILE)
        kept = ("repetition_penalty", "max_new_tokens", "max_length")
        options: dict[str, Any] = {key: said[key] for key in kept if key in said}
        if said.get("do_sample"):
            options |= {"temperature": 1.0, "top_k": _TOP_K} | {key: said[key] for key in _SAMPLING if key in said}
            options = {key: value for key, value in options.items() if not _cuts_nothing(key, value)}
        else:
            options["temperature"] = 0.0
        numbers = {key: options[key] for key in (*_SAMPLING, "repetition_penalty") if key in options}
        for key, value in numbers.items():
            check_number(key, value, spelling=IN_THE_FILE)
        Sampling(**numbers)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if stops := said.get("stop_strings"):
        options["stop"] = _stop_strings(stops, source)
    return options


def _foreign(fields: Mapping[str, Any]) -> Iterator[str]:
    known = {*_READ, *_NO_INFLUENCE.split()}
    for key, value in fields.items():
        if value is None or key in known:
            continue
        if key not in _HARMLESS_VALUES:
            yield f"{name_text(key)} is not known"
        elif value not in _HARMLESS_VALUES[key]:
            yield f"{key} is {json_text(value)}"


def _cuts_nothing(key: str, value: Any) -> bool:
    """Whether transformers takes a value for no cut at all, where ours has no such spelling."""
    nothing: Mapping[str, Any] = {"top_k": 0, "min_p": 0}
    return key in nothing and type(value) in (int, float) and value == nothing[key]


def _stop_strings(stops: Any, source: str) -> tuple[str, ...]:
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise CheckpointError(f"{source}: stop_strings must be texts that are not empty, not {json_text(stops)}.")
    return tuple(stops)
