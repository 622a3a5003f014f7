"""A batch of training text as a file for people: its tokens, what they spell, and which documents they are of."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..checkpoint.files import write_atomically
from .batches import Batch
from .data.stream import Origin

NAMED = 3  # documents in a message; the file has all of them


def write_batch(path: Path, why: str, batch: Batch, origins: Sequence[Sequence[Origin]], tokenizer: Tokenizer) -> str:
    """Write a step's batch as JSON: why, and each row's documents with their text, its token ids and its targets.

    origins: which documents each row is from. Gives a description for messages: the file, and some of the documents.
    """
    rows = [
        {"documents": list(_documents(row, token_ids, tokenizer)), "token_ids": token_ids, "targets": targets}
        for row, token_ids, targets in zip(origins, batch.token_ids.tolist(), batch.targets.tolist(), strict=True)
    ]
    write_atomically(path, (json.dumps({"why": why, "rows": rows}, ensure_ascii=False) + "\n").encode())
    names = list(dict.fromkeys(str(origin) for row in origins for origin in row))
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{path} ({', '.join(names[:NAMED])}{more})"


def _documents(row: Sequence[Origin], token_ids: list[int], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    start = 0
    for origin in row:
        end = start + origin.tokens
        yield {"document": str(origin), "tokens": origin.tokens, "text": tokenizer.decode(token_ids[start:end])}
        start = end
