"""From files of text to a folder of tokens: with a tokenizer that is opened or trained, and what was read is told."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..tokenizer import (
    end_of_text,
    load_tokenizer,
    special_tokens,
    tokenizer_file,
    tokenizer_files,
    train_tokenizer,
    vocabulary_size,
)
from .chat import load_template
from .corpus import Corpus, Say
from .folder import FILES_FILE, TokenFolder, file_state, is_folder_of_tokens, read_folder
from .split import Rule, look_through
from .writing import write_folder


def prepare(
    target: Path,
    paths: Sequence[str],
    *,
    tokenizer: str,
    vocab_size: int,
    sample_mb: int,
    one_in: int,
    weights: Sequence[float],
    say: Say,
    leave_out: Path | None = None,
) -> TokenFolder:
    """Read the text below `paths`, and leave its tokens in the folder `target`, where they are not yet.

    tokenizer: a tokenizer.json or a folder with one; "" trains one of at most `vocab_size` tokens on `sample_mb`
    megabytes of the training text, for which the text is read once more. one_in: one document in so many is held out.
    say: hears what was read, skipped and left out. Raises DataError for what cannot be used, and for a folder that
    holds something else.
    """
    check_weights(weights, paths)
    if target.name in ("", ".."):  # a dot: the folder beside it that is written first needs its name
        target = target.resolve()
    settings: dict[str, Any] = {"one_in": one_in, "weights": list(weights), "new_tokenizer": None}
    if not tokenizer:
        settings["new_tokenizer"] = {"vocab_size": vocab_size, "sample_mb": sample_mb}
    corpus = Corpus(paths, leave_out=leave_out)
    if is_folder_of_tokens(target):
        folder = read_folder(target)
        _check_same(folder, corpus, settings, tokenizer)
        say(f"{target} has these tokens already.")
        return folder
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} must be a new folder, but holds other things; choose another one.")
    rule = Rule(one_in, each_root=bool(weights))
    if tokenizer:
        used, seen = load_tokenizer(Path(tokenizer)), None
    else:
        seen, sample = look_through(corpus, rule, sample_mb * 1_000_000)
        used = train_tokenizer(sample.texts(), vocab_size)
    beside = tokenizer_file(Path(tokenizer)) if tokenizer else None
    template = load_template(beside, end_of_text(used)[0], list(special_tokens(used)))
    write_folder(target, corpus, used, template, rule=rule, settings=settings, seen=seen)
    folder = read_folder(target)
    for line in folder.summary["said"]:
        say(line)
    if not tokenizer:
        say(f"Trained a tokenizer of {vocabulary_size(used):,} tokens.")
    return folder


def check_weights(weights: Sequence[float], sources: Sequence[object]) -> None:
    """Raises DataError for weights that are not one for each source."""
    if weights and len(weights) != len(sources):
        raise DataError(
            f"there must be a weight for each source, but there are {len(weights)} weights and {len(sources)} sources; "
            "name them in the same order."
        )


def same_tokenizer(folder: TokenFolder, tokenizer: str) -> bool:
    """Whether the tokens in a folder are of this tokenizer."""
    return (
        tokenizer_files(load_tokenizer(Path(tokenizer)))["tokenizer.json"]
        == (tokenizer_files(folder.tokenizer)["tokenizer.json"])
    )


def _check_same(folder: TokenFolder, corpus: Corpus, settings: Mapping[str, Any], tokenizer: str) -> None:
    """Raises DataError when a folder was made of something else than what is asked for now."""
    files = json.loads((folder.path / FILES_FILE).read_bytes())
    now = [[str(source.path), *file_state(source.path)] for source in corpus.sources]
    if folder.summary["sources"] != [str(root) for root in corpus.roots]:
        reason = f"those of {', '.join(folder.summary['sources'])}"
    elif files != now:
        before = {str(each) for each in files}
        changed = next((str(each[0]) for each in now if str(each) not in before), "a file that is gone")
        reason = f"older than {changed}"
    elif folder.summary["settings"] != settings or (tokenizer and not same_tokenizer(folder, tokenizer)):
        reason = "made by another tokenizer or other settings"
    else:
        return
    raise DataError(f"{folder.path} holds tokens already, but they are {reason}; choose another --out, or delete it.")
