"""The tokenizer of a model's folder, opened."""

from pathlib import Path

from tokenizers import Tokenizer

from ..errors import CheckpointError
from ..generation.text import of_tokenizers
from .files import file_in
from .tokenizer_files import TOKENIZER, read_file


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder, from its tokenizer.json. Raises CheckpointError."""
    path = folder / TOKENIZER
    if not path.exists() and not path.is_symlink():
        raise CheckpointError(f"text needs a tokenizer, but {folder} has no {TOKENIZER}; copy the model's there.")
    content = read_file(file_in(folder, TOKENIZER))
    with of_tokenizers(f"{path} is not a tokenizer that can be read"):
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()  # some files were saved with the settings of a training: they would change prompts
        tokenizer.no_truncation()
    return tokenizer
