"""`prenorm export RUN --gguf FILE`: a trained model for llama.cpp, or as another Hugging Face folder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import ConfigError
from .flags import flags_from


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFlags:
    """Write a trained model and its tokenizer as one GGUF file for llama.cpp, or as a Hugging Face folder."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A folder with config.json, weights and tokenizer.json: from prenorm train, for example."""

    gguf: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write this file, of a Llama, Qwen2 or Qwen3 with a byte-level BPE, as prenorm train makes. Needs the gguf
    package: pip install 'prenorm[gguf]'."""

    folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write this folder, which transformers opens with AutoModelForCausalLM and AutoTokenizer."""

    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, tyro.conf.arg(metavar="DTYPE")] = None
    """float32, bfloat16 or float16. Default: as the weights are stored."""

    max_shard_size: Annotated[str | None, tyro.conf.arg(metavar="BYTES")] = None
    """With --folder: the most bytes of weights in a file, such as 5GB. Default: one file."""


def parse(argv: list[str]) -> ExportFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: ExportFlags = flags_from(ExportFlags, argv, prog="prenorm export")
    return flags


def run(flags: ExportFlags) -> int:
    """Write what was asked for. Gives the exit code."""
    if flags.gguf is None and flags.folder is None:
        raise ConfigError("there is nothing to write; --gguf FILE or --folder FOLDER says what.")
    if flags.max_shard_size is not None and flags.folder is None:
        raise ConfigError("--max-shard-size is about the files of a folder; add --folder, or leave it out.")
    if flags.folder is not None and flags.folder.resolve() == flags.run.resolve():
        raise ConfigError(f"{flags.folder} is the run itself; choose another --folder.")
    import torch

    from ..checkpoint.gguf import write_gguf
    from ..checkpoint.tokenizer import open_tokenizer
    from ..layers.quantized import kind_of
    from ..models.lm import TransformerLM
    from .trained_model import check_is_trained

    check_is_trained(flags.run)
    dtype = None if flags.dtype is None else getattr(torch, flags.dtype)
    model = TransformerLM.from_pretrained(flags.run, dtype=dtype)
    if flags.gguf is not None:
        if kind := kind_of(model):
            raise ConfigError(f"{flags.run} is rounded to {kind}; export the run that it was made of.")
        notes = write_gguf(
            flags.gguf,
            model.config,
            model.state_dict(),
            open_tokenizer(flags.run),
            eos_token_ids=model.eos_token_ids,
            name=flags.run.resolve().name,
        )
        print(flags.gguf)
        for note in notes:
            print(f"prenorm export: {note}", file=sys.stderr)
    if flags.folder is not None:
        model.save_pretrained(flags.folder, max_shard_size=flags.max_shard_size)
        print(flags.folder)
    return 0
