"""A batch of training text as a file for people: its tokens, what they spell, and which documents they are of."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..checkpoint.files import write_atomically
from .batches import Batch
from .tokens import TokenStream


def write_batch(
    path: Path, batch: Batch, places: np.ndarray, stream: TokenStream, tokenizer: Tokenizer, why: str
) -> None:
    """Write a step's batch as JSON: why, and each row's documents, text and token ids.

    places: where in the stream each of the batch's tokens stands. A document is named by its number in the training
    text; `first_token` is the first of its tokens that the row has (0: the end-of-text token before it).
    """
    rows = [
        {
            "documents": _documents(place, token_ids, stream, tokenizer),
            "token_ids": token_ids,
            "targets": targets,
        }
        for place, token_ids, targets in zip(places, batch.token_ids.tolist(), batch.targets.tolist(), strict=True)
    ]
    write_atomically(path, (json.dumps({"why": why, "rows": rows}, ensure_ascii=False) + "\n").encode())


def _documents(
    places: np.ndarray, token_ids: list[int], stream: TokenStream, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The documents of a row, in its order."""
    numbers = np.searchsorted(stream.starts, places, side="right") - 1
    begins = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(token_ids)]
    return [
        {
            "document": int(numbers[begin]),
            "first_token": int(places[begin] - stream.starts[numbers[begin]]),
            "tokens": end - begin,
            "text": tokenizer.decode(token_ids[begin:end]),
        }
        for begin, end in pairwise(begins)
    ]
