"""The tokens of a run: one long stream a side, on the disk of the run itself, so that a resumed run reads the same."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from ..checkpoint.files import json_content, read_json, write_together
from ..errors import CheckpointError, DataError
from .baseline import HeldOutText, TextMeter
from .config import TrainConfig
from .corpus import Corpus, Say
from .split import SplitCorpus, split
from .tokenizer import (
    comes_back,
    encode,
    end_of_text,
    load_tokenizer,
    tokenizer_files,
    train_tokenizer,
    vocabulary_size,
)

SLICE_CHARACTERS = 1_000_000  # a text is encoded in slices of this size, many at once, so that memory stays small
SLICES_AT_ONCE = 16
TWO_BYTES = 2**16  # vocabularies of up to this many tokens are stored in two bytes a token, larger ones in four


@dataclass(frozen=True)
class TokenStream:
    """Documents as END doc END doc ... END: `starts` says where the END before each document is, and the last END.

    A document's inputs are its END and its tokens; their targets are its tokens and the next END.
    """

    tokens: np.ndarray
    starts: np.ndarray

    @property
    def num_targets(self) -> int:
        """How many tokens there are to predict: all but the first END."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class TextData:
    """Everything that a run reads: both streams, the tokenizer, and the sizes of the held-out text."""

    tokenizer: Tokenizer
    train: TokenStream
    heldout: TokenStream
    heldout_text: HeldOutText


def prepare_text(config: TrainConfig, run: Path, say: Say) -> TextData:
    """The text of a run, from the run's own folder when it is complete there, else read, encoded and left there.

    Writes tokenizer.json, tokenizer_config.json and data/. Raises DataError for text that cannot be trained on.
    """
    if not (run / "data" / "data.json").exists():
        corpus = split(Corpus(config.data, leave_out=run), say)
        if config.tokenizer:
            tokenizer = load_tokenizer(Path(config.tokenizer))
        else:
            tokenizer = train_tokenizer(corpus.sample(config.tokenizer_sample_mb * 1_000_000), config.model.vocab_size)
            say(f"Trained a tokenizer of {vocabulary_size(tokenizer):,} tokens.")
        write_together({run / name: content for name, content in tokenizer_files(tokenizer).items()})
        _write_tokens(run / "data", corpus, tokenizer)
        if config.tokenizer and (
            changed := sum(not comes_back(tokenizer, text) for text in corpus.texts(heldout=True))
        ):
            say(
                f"The tokenizer loses part of {changed:,} held-out documents, so bits per byte are too good to be true."
            )
    data = read_tokens(run)
    for side, stream, least in (("training", data.train, config.context), ("held-out", data.heldout, 2)):
        if stream.num_targets < least:
            raise DataError(
                f"the {side} text must have at least {least:,} tokens, but has {stream.num_targets:,}; "
                "give more text with --data" + (", or a smaller --context." if side == "training" else ".")
            )
    return data


def _write_tokens(folder: Path, corpus: SplitCorpus, tokenizer: Tokenizer) -> None:
    """data.json comes last: where it is, everything else is whole."""
    train, heldout, meter = _StreamWriter(tokenizer), _StreamWriter(tokenizer), TextMeter()

    def write_summary(file: BinaryIO) -> None:
        summary = {
            "dtype": train.dtype.str,
            "tokens": {"train": train.starts[-1] + 1, "heldout": heldout.starts[-1] + 1},
            "heldout_text": asdict(meter.sizes()),
        }
        file.write(json_content(summary))

    write_together(
        {
            folder / "train.bin": lambda file: train.write(file, corpus.texts(heldout=False)),
            folder / "train_starts.npy": train.write_starts,
            folder / "heldout.bin": lambda file: heldout.write(file, meter.metered(corpus.texts(heldout=True))),
            folder / "heldout_starts.npy": heldout.write_starts,
            folder / "data.json": write_summary,
        }
    )


class _StreamWriter:
    """Encodes documents into a file, and remembers where they start."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.dtype = np.dtype("<u2" if vocabulary_size(tokenizer) <= TWO_BYTES else "<u4")
        self.starts = [0]
        self._tokenizer = tokenizer
        _, self._end = end_of_text(tokenizer)

    def write(self, file: BinaryIO, texts: Iterable[str]) -> None:
        for group in _groups(texts):
            slices = [_slices(text) for text in group]
            encoded = iter(encode(self._tokenizer, [part for parts in slices for part in parts]))
            for parts in slices:
                ids = [token for _ in parts for token in next(encoded)]
                file.write(np.array([self._end, *ids], self.dtype).tobytes())
                self.starts.append(self.starts[-1] + 1 + len(ids))
        file.write(np.array([self._end], self.dtype).tobytes())

    def write_starts(self, file: BinaryIO) -> None:
        np.save(file, np.array(self.starts, np.int64))


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in groups of about SLICES_AT_ONCE slices."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= SLICES_AT_ONCE * SLICE_CHARACTERS:
            yield group
            group, characters = [], 0
    yield group


def _slices(text: str) -> list[str]:
    """The text in slices, each but the first beginning with a line's end, where no token would have crossed.

    A line that is longer than a slice is cut where the slice is full.
    """
    slices, start = [], 0
    while start < len(text):
        end = start + SLICE_CHARACTERS
        line_end = text.rfind("\n", start + 1, end)
        end = line_end if end < len(text) and line_end >= 0 else end
        slices.append(text[start:end])
        start = end
    return slices


def read_tokens(run: Path) -> TextData:
    """The text that a run has left in its folder. Raises CheckpointError where it is not whole."""
    folder, summary = run / "data", read_json(run / "data" / "data.json")
    return TextData(
        load_tokenizer(run / "tokenizer.json"),
        _read_stream(folder, "train", summary),
        _read_stream(folder, "heldout", summary),
        HeldOutText(**summary["heldout_text"]),
    )


def _read_stream(folder: Path, side: str, summary: dict[str, Any]) -> TokenStream:
    try:
        tokens = np.memmap(folder / f"{side}.bin", np.dtype(summary["dtype"]), "r")
        starts = np.load(folder / f"{side}_starts.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the {side} text in {folder} cannot be read ({error}); start the run again.") from error
    if len(tokens) != summary["tokens"][side]:
        raise CheckpointError(
            f"{folder / side}.bin must have {summary['tokens'][side]:,} tokens, but has {len(tokens):,}; "
            "start the run again in another folder."
        )
    return TokenStream(tokens, starts)
