"""Prompts and the ids that end a reply, read from lists or tensors and checked once, before anything runs."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ConfigError, RangeError

# The axes are unnamed, because rows, and the sources and prompts of one call, may differ in length.
Prompts = Sequence[Sequence[int]] | Sequence[Int[Tensor, " _"]] | Int[Tensor, "... _"]


def token_lists(prompts: Prompts, name: str = "prompt") -> list[list[int]]:
    """Each prompt as a list of ids; a tensor (seq,) is one prompt. Messages call a row `name`.

    Raises ConfigError for anything that is not a prompt, including a prompt without tokens.
    """
    single = isinstance(prompts, Tensor | np.ndarray) and prompts.ndim < 2
    rows = _id_lists([prompts] if single else prompts, name)
    if [] in rows:
        raise ConfigError(
            f"a {name} must have at least one token, but {name} {rows.index([])} is empty; "
            "to start a new text, give the end-of-text token."
        )
    return rows


def endings(eos_token_id: int | Sequence[int] | None, stop: Sequence[Sequence[int]]) -> list[list[int]]:
    """The sequences of ids that end a reply: each end-of-text id alone, and the stop sequences. Raises ConfigError."""
    sequences = _id_lists(stop, "stop sequence")
    if [] in sequences:
        raise ConfigError("a stop sequence must have at least one token id, but one is empty; leave it out.")
    return [[one] for one in end_ids(eos_token_id)] + sequences


def end_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """The end-of-text ids as a list, from none, one or several. Raises ConfigError."""
    if eos_token_id is None:
        return []
    single = not hasattr(eos_token_id, "__iter__") or getattr(eos_token_id, "ndim", 1) == 0
    return _id_list([eos_token_id] if single else eos_token_id, "eos_token_id")


def check_ids(rows: list[list[int]], vocab_size: int, name: str = "prompt") -> None:
    """Raise RangeError unless every id is in [0, vocab_size)."""
    for index, row in enumerate(rows):
        low, high = min(row), max(row)
        if low < 0 or high >= vocab_size:
            raise RangeError(
                f"token ids must be in [0, vocab_size), but those of {name} {index} go from {low} to {high} "
                f"and vocab_size is {vocab_size}; {vocab_size - 1} is the largest valid id."
            )


def check_room(
    rows: list[list[int]],
    max_new_tokens: int,
    max_seq_len: int,
    name: str = "max_seq_len",
    *,
    held: Sequence[int] | None = None,
) -> None:
    """Raise RangeError unless every prompt and its reply fit.

    held: how many tokens each row already has in a cache. The last new token is never fed back, so
    held + prompt + max_new_tokens - 1 may equal max_seq_len.
    """
    if not rows:
        return
    held = [0] * len(rows) if held is None else held
    lengths = [len(row) + before for row, before in zip(rows, held, strict=True)]
    longest = max(lengths)
    fullest = lengths.index(longest)
    size, before = len(rows[fullest]), held[fullest]
    has = f"prompt {fullest} has {size} tokens{f', after {before} in the cache,' if before else ''}"
    largest = max_seq_len - longest + 1
    if largest < 1:
        over = longest - max_seq_len
        way_out = f"leave out {over} of them" if over < size else "use a new cache"
        raise RangeError(f"a prompt must fit into {name}, but {has} and there is room for {max_seq_len}; {way_out}.")
    if max_new_tokens > largest:
        raise RangeError(
            f"prompt + max_new_tokens - 1 must fit into {name}, but {has}, max_new_tokens is {max_new_tokens} "
            f"and there is room for {max_seq_len}; max_new_tokens={largest} would do."
        )


def _id_lists(sequences: Any, name: str) -> list[list[int]]:
    if isinstance(sequences, str) or not hasattr(sequences, "__iter__"):
        sequences = [sequences]
    return [_id_list(ids, f"{name} {index}") for index, ids in enumerate(sequences)]


def _id_list(ids: Any, name: str) -> list[int]:
    if isinstance(ids, str):
        raise ConfigError(
            f"{name} must be token ids, not the text {ids!r}; prenorm.generation.text.TextGenerator takes text."
        )
    if isinstance(ids, Tensor | np.ndarray):
        if ids.ndim != 1 or "int" not in str(ids.dtype):
            raise ConfigError(
                f"{name} must be one row of integers, not a tensor of {ids.dtype} with shape {tuple(ids.shape)}."
            )
        return ids.tolist()
    if not hasattr(ids, "__iter__"):
        raise ConfigError(f"{name} must be a sequence of token ids, not {ids!r}; put the ids in a list: [[...]].")
    try:
        return [_id(one) for one in ids]
    except TypeError:
        raise ConfigError(f"{name} must be a sequence of integers, the token ids, not {ids!r}.") from None


def _id(one: Any) -> int:
    if isinstance(one, bool) or getattr(one, "dtype", None) == torch.bool:
        raise TypeError
    return operator.index(one)
