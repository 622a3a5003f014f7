"""The text of a run as tokens: from the run's own folder, or from folders that `prenorm data` has left."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from ..checkpoint.files import json_content, read_json, write_atomically, write_together
from ..distributed.processes import Processes
from ..errors import DataError
from .config import TrainConfig
from .data.baseline import HeldOutText
from .data.copies import Texts, copies
from .data.corpus import Say
from .data.folder import TokenFolder, is_folder_of_tokens, read_folder
from .data.prepare import check_weights, prepare, same_tokenizer
from .data.reading import shown
from .data.stream import Origin, TokenStream, joined
from .tokenizer import end_of_text, tokenizer_files

PREPARED_FILE = "prepared.json"  # in RUN/data: which folders a run reads instead of its own


@dataclass(frozen=True)
class TextData:
    """Everything that a run reads: both streams, the tokenizer, the sizes of the held-out text.

    `end_ids` are the tokens that end a text: the end-of-text token, and what ends a reply. `sha256` is a hash of all
    tokens and the tokenizer, by which a run can tell that it goes on with the same.
    """

    tokenizer: Tokenizer
    train: TokenStream
    heldout: TokenStream
    heldout_text: HeldOutText
    end_ids: tuple[int, ...] = ()
    sha256: str = ""


def prepare_text(config: TrainConfig, run: Path, say: Say) -> TextData:
    """The text of a run, from the run's own folder when it is complete there, else read, encoded and left there.

    Where `config.data` names folders of tokens, they are read where they lie. All bytes are checked first.
    Writes RUN/data/, and the tokenizer's files beside it. Raises DataError for text that cannot be trained on.
    """
    prepared = [Path(path) for path in config.data if is_folder_of_tokens(Path(path))]
    if prepared:
        folders = _prepared_folders(config, prepared, run, say)
    elif is_folder_of_tokens(run / "data"):
        folders = [read_folder(run / "data")]
    else:
        own = prepare(
            run / "data",
            config.data,
            tokenizer=config.tokenizer,
            vocab_size=config.model.vocab_size,
            sample_mb=config.tokenizer_sample_mb,
            one_in=config.heldout_one_in,
            weights=config.data_weights,
            say=say,
            leave_out=run,
        )
        folders = [own]
    _copy_tokenizer(folders[0], run)
    data = _text_data(folders, config.data_weights)
    for side, stream, least in (("training", data.train, config.context), ("held-out", data.heldout, 2)):
        if stream.num_tokens < least or stream.num_targets < 1:
            raise DataError(
                f"the {side} text must have at least {least:,} tokens, but has {stream.num_tokens:,}; "
                "give more text with --data" + (", or a smaller --context." if side == "training" else ".")
            )
    return data


def text_for_all(config: TrainConfig, run: Path, processes: Processes, say: Say) -> TextData:
    """`prepare_text` in the first of the processes; then the others read what is there. Raises DataError in all."""
    prepared: list[TextData] = []
    processes.first("reading the text", lambda: prepared.append(prepare_text(config, run, say)))
    return prepared[0] if prepared else prepare_text(config, run, say)


def check_tokenizer(run: Path) -> None:
    """Raise DataError where the run's folder, which becomes a model's, has another tokenizer than its text."""
    own, prepared = run / "tokenizer.json", run / "data" / PREPARED_FILE
    folder = Path(next(iter(read_json(prepared)["folders"]))) if prepared.exists() else run / "data"
    if own.read_bytes() != (folder / own.name).read_bytes():
        raise DataError(
            f"a run has the tokenizer that its text was encoded with, but {own} is not that in {folder}; delete it, "
            "and it is written again."
        )


def read_tokens(run: Path) -> TextData:
    """The text of a run that has begun. Raises DataError where it is not whole."""
    if (run / "data" / PREPARED_FILE).exists():
        prepared = read_json(run / "data" / PREPARED_FILE)
        return _text_data([read_folder(Path(path)) for path in prepared["folders"]], prepared["weights"])
    return _text_data([read_folder(run / "data")], ())


def _prepared_folders(config: TrainConfig, paths: list[Path], run: Path, say: Say) -> list[TokenFolder]:
    """Folders of tokens that a run reads, which must be those that it began with."""
    if len(paths) < len(config.data):
        other = next(path for path in config.data if Path(path) not in paths)
        raise DataError(
            f"--data takes either text or folders of tokens, but {paths[0]} holds tokens and {other} does not; "
            f"prenorm data {other} --tokenizer {paths[0]} --out FOLDER makes tokens of it."
        )
    folders = [read_folder(path) for path in paths]
    if twice := [
        path for number, path in enumerate(paths) if path.resolve() in {one.resolve() for one in paths[:number]}
    ]:
        raise DataError(
            f"each folder of tokens is named once, but {twice[0]} is named twice; --data-weights reads more of one."
        )
    for tokenizer in [config.tokenizer, *map(str, paths[1:])]:
        if tokenizer and not same_tokenizer(folders[0], tokenizer):
            raise DataError(
                f"all tokens of a run must be of one tokenizer, but those in {paths[0]} are not of that in "
                f"{tokenizer}; prenorm data SOURCES --tokenizer {tokenizer} --out FOLDER makes others."
            )
    now = {str(folder.path): folder.sha256 for folder in folders}
    file = run / "data" / PREPARED_FILE
    if not file.exists():
        said = [f"{folder.path}: {line}" for folder in folders for line in folder.summary["said"]]
        said += _copies_between(folders)
        for line in said:
            say(line)
        write_atomically(file, json_content({"folders": now, "weights": list(config.data_weights), "said": said}))
    elif read_json(file)["folders"] != now:
        raise DataError(
            f"a run goes on with the tokens that it began with, but those in {', '.join(now)} are others; "
            "put them back, or start another run with another --out."
        )
    return folders


def _copies_between(folders: Sequence[TokenFolder]) -> Iterator[str]:
    """What is to be said of training documents of a folder that another one holds out."""
    for folder in folders:
        others = [other.heldout for other in folders if other is not folder]
        if others and (same := copies(_texts(folder.train), _texts(joined(others)))):
            yield f"{folder.path}: {same}"


def _texts(stream: TokenStream) -> Texts:
    return Texts(stream.text_hashes, lambda number: shown(str(Origin(*stream.place_of(number), tokens=0))))


def _copy_tokenizer(folder: TokenFolder, run: Path) -> None:
    """The run's folder becomes a model's, and needs the tokenizer in it."""
    names = [name for name in (*tokenizer_files(folder.tokenizer), "chat_template.jinja") if not (run / name).exists()]
    contents = {run / name: (folder.path / name).read_bytes() for name in names if (folder.path / name).exists()}
    if contents:
        write_together(contents)


def _text_data(folders: Sequence[TokenFolder], weights: Sequence[float]) -> TextData:
    train = joined([folder.train for folder in folders])
    tokenizer = folders[0].tokenizer
    ends = {token for folder in folders for token in folder.summary["reply_ends"]}
    sizes = folders[0].heldout_text
    for folder in folders[1:]:
        sizes += folder.heldout_text
    return TextData(
        tokenizer,
        replace(train, mixture=_mixture(train, folders, weights)),
        joined([folder.heldout for folder in folders]),
        sizes,
        tuple(dict.fromkeys([end_of_text(tokenizer)[1], *sorted(ends)])),
        hashlib.sha256("".join(folder.sha256 for folder in folders).encode()).hexdigest(),
    )


def _mixture(
    train: TokenStream, folders: Sequence[TokenFolder], weights: Sequence[float]
) -> tuple[tuple[TokenStream, float], ...]:
    """The streams of all sources with their weights: `weights` are those of the folders, or, where there is one, of the
    sources that it was made of; else those that it was made with."""
    within = [folder.summary["settings"]["weights"] for folder in folders]
    if len(folders) == 1:
        within, weights = [list(weights) or within[0]], []
    check_weights(weights, folders)
    if not weights and not any(within):
        return ()
    if not weights and len(folders) > 1:
        raise DataError("folders of tokens that have weights within need weights, too: one each, by --data-weights.")
    mixture, offset = [], 0
    for folder, weight, own in zip(folders, weights or [1.0], within, strict=True):
        count = len(folder.train.starts) - 1
        names, bounds = folder.summary["sources"], folder.summary["bounds"]["train"]
        if not own:
            names, bounds, own = [str(folder.path)], [0, count], [1.0]
        check_weights(own, names)
        for name, share, first, last in zip(names, own, bounds[:-1], bounds[1:], strict=True):
            if first == last:
                raise DataError(
                    f"each source with a weight must have training text, but {name} has none; leave it out."
                )
            mixture.append((train.part(offset + first, offset + last), weight * share / sum(own)))
        offset += count
    return tuple(mixture)
