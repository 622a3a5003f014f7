"""The files of a folder's tokenizer: they travel with its model, from the folder it is opened from to the next."""

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError
from .files import file_in

TOKENIZER = "tokenizer.json"

# All files together. The largest published, of 256,000 tokens and their merges, have 40 MB.
MAX_BYTES = 100_000_000

# Tokenizers of every kind, their special tokens, chat templates.
_FILES = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt|bpe)|merges\.txt"
    r"|tokenizer\.model(\.v\w+)?|(spiece|sentencepiece\.bpe)\.model|tekken\.json|\w+\.tiktoken"
    r"|chat_template\.(jinja|json)"
)
_TEMPLATES = "additional_chat_templates"  # a folder of further ones
_TEMPLATE = re.compile(r"[\w-]+\.jinja")


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that belong to its tokenizer, by name.

    Raises CheckpointError for one that leads out of the folder, and where they are larger than any tokenizer's.
    """
    files: dict[str, bytes] = {}
    room = MAX_BYTES
    for name in tokenizer_files_in(folder):
        path = folder / name
        files[name] = read_file(file_in(path.parent, path.name), at_most=room)
        room -= len(files[name])
    return files


def read_file(path: Path, *, at_most: int = MAX_BYTES) -> bytes:
    """The content of a tokenizer's file. Raises CheckpointError for more than `at_most` bytes."""
    try:
        with open(path, "rb") as file:
            too_large = os.fstat(file.fileno()).st_size > at_most
            content = b"" if too_large else file.read(at_most)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if too_large:
        raise CheckpointError(
            f"{path} makes the files of the tokenizer larger than {MAX_BYTES:,} bytes, which no tokenizer needs."
        )
    return content


def remove_tokenizer_files(folder: Path, *, but: Collection[str]) -> None:
    """Delete the files of another tokenizer, which programs would mix with those of these names."""
    with suppress(OSError):
        for name in tokenizer_files_in(folder):
            if name not in but:
                (folder / name).unlink()


def tokenizer_files_in(folder: Path) -> list[str]:
    """The names of the files in a folder that belong to a tokenizer."""
    names = [name for name in os.listdir(folder) if _FILES.fullmatch(name)]
    templates = folder / _TEMPLATES
    if templates.is_dir() and not templates.is_symlink():
        names += [f"{_TEMPLATES}/{name}" for name in os.listdir(templates) if _TEMPLATE.fullmatch(name)]
    return sorted(names)
