"""What each fuzzer does with its files: they are written to a folder, inspected and opened."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prenorm.checkpoint.folder import load
from prenorm.checkpoint.inspection import inspect_folder
from prenorm.errors import PrenormError

from ..checkpoint.hostile.folders import write


def open_folder(files: dict[str, Any], folder: Path) -> None:
    """What opens a folder. Raises whatever is not our own error, and where inspecting it says something else."""
    shutil.rmtree(folder, ignore_errors=True)
    write(files, folder)
    sheet = inspect_folder(folder)
    json.dumps(sheet).encode()
    for dtype in (None, torch.float16, torch.float64):
        error = refusal(partial(load, folder, dtype=dtype))
        if dtype is None:
            assert error in ("", *sheet["refused"]) or BY_VALUES.search(error)
            assert error or sheet["refused"] == []


def refusal(call: Callable[[], Any]) -> str:
    """The text of our error, "" where there is none."""
    text = ""
    try:
        call()
    except PrenormError as error:
        text = str(error)
    assert len(text) < 20_000
    return text


# Refusals for what tensors hold, which no sheet has read, and of a model that another class opens.
BY_VALUES = re.compile(
    r"tied embeddings share one tensor|must hold finite bfloat16 numbers|weight_shape says|prenorm_encoder_decoder"
)


def said_in(data: bytes) -> dict[str, Any] | None:
    """What an input of JSON says: changes by name, which mean the same when a table of the loader has grown."""
    if not data.startswith(b"{"):
        return None
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def encoded(fields: Any) -> bytes:
    """JSON as a hostile program writes it: with halves of characters, and numbers of any length."""
    return json.dumps(fields).encode()
