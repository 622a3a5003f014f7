"""The model and the tokenizer in the folder that a command line names."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:  # loads torch, which --help does not wait for
    from tokenizers import Tokenizer

    from ..models.lm import TransformerLM


def open_model(folder: Path) -> "tuple[TransformerLM, Tokenizer]":
    """Those of a run that has ended, or of a folder in Hugging Face's layout. Raises CheckpointError for any other."""
    check_is_trained(folder)
    import torch

    from ..checkpoint.tokenizer import open_tokenizer
    from ..models.lm import TransformerLM

    tokenizer = open_tokenizer(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TransformerLM.from_pretrained(folder, device=device), tokenizer


def check_is_trained(folder: Path) -> None:
    """Raise CheckpointError unless the folder holds a model, and for a run that has not ended."""
    if not folder.is_dir():
        raise CheckpointError(f"RUN must be a folder with a trained model, but there is no folder {folder}.")
    weights = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    if (folder / "config.toml").is_file() and not weights:
        raise CheckpointError(
            f"the training in {folder} has not ended: there is no model.safetensors yet, only checkpoints in "
            f"{folder / 'checkpoints'}; prenorm train --out {folder} --resume goes on with it."
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no trained model: it has no config.json; give a folder that prenorm train or "
            "save_pretrained wrote."
        )
