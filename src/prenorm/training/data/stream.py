"""The tokens of one side, training or held-out, as a run reads them: one long stream that lies on the disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ...ops.cross_entropy import IGNORED
from .formats import WHOLE, place_in


class Origin(NamedTuple):
    """A document that tokens are from: its file, its line or row or WHOLE, and how many of the tokens."""

    path: str
    place: int
    tokens: int

    def __str__(self) -> str:
        return self.path + place_in(self.path, self.place)


class Shards:
    """Arrays one after the other, indexed like one long array by a slice or an array of places."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = list(arrays)
        self._ends = np.cumsum([len(array) for array in self.arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        if len(self.arrays) == 1:
            return self.arrays[0][places]
        shards = np.searchsorted(self._ends, places, side="right")
        found = np.empty(places.shape, self.arrays[0].dtype)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            array = self.arrays[shard]
            found[here] = array[places[here] - (self._ends[shard] - len(array))]
        return found


@dataclass(frozen=True)
class TokenStream:
    """Documents as END doc END doc ... END: `starts` says where the END before each document is, and the last END.

    A document's inputs are its END and its tokens; their targets are its tokens and the next END. `unscored` has pairs
    of places, in one flat and rising array: tokens from the first to before the second are read, and are no targets.
    `mixture` has the streams of several sources, parts of this one, each with its weight; () where all are read alike.
    `place_of` gives the file and the place in it of a document by its number, `first_document` that of the first.
    `text_hashes` are of the texts of all documents that it gives a place of.
    """

    tokens: np.ndarray | Shards
    starts: np.ndarray
    unscored: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    mixture: tuple[tuple["TokenStream", float], ...] = ()
    place_of: Callable[[int], tuple[str, int]] = lambda number: (f"document {number}", WHOLE)
    first_document: int = 0
    text_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def num_tokens(self) -> int:
        """How many tokens have one after them: all but the last END."""
        return int(self.starts[-1] - self.starts[0])

    @property
    def num_targets(self) -> int:
        """How many tokens there are to predict: all but the first END, and of conversations the replies."""
        return self.num_targets_in(int(self.starts[0]) + 1, int(self.starts[-1]) + 1)

    def num_targets_in(self, first: int, last: int) -> int:
        """How many of the tokens from the place `first` to before `last` are to be predicted."""
        near = np.searchsorted(self.unscored, [first, last], side="right")
        pairs = self.unscored[near[0] - near[0] % 2 : near[1] + near[1] % 2].clip(first, last)
        return last - first - int((pairs[1::2] - pairs[::2]).sum())

    def targets(self, places: np.ndarray) -> np.ndarray:
        """The tokens at these places, IGNORED where they are no targets."""
        targets = self.tokens[places].astype(np.int64)
        if len(self.unscored):
            targets[np.searchsorted(self.unscored, places, side="right") % 2 == 1] = IGNORED
        return targets

    def documents(self, places: np.ndarray) -> np.ndarray:
        """The number of the document that each of these inputs is part of; this stream's first is 0."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def origins(self, places: np.ndarray) -> list[Origin]:
        """The documents that a row of inputs is from, in order."""
        documents = self.documents(places)
        begins = np.flatnonzero((np.diff(documents) != 0) | (np.diff(places) != 1)) + 1
        return [
            Origin(*self.place_of(self.first_document + int(piece[0])), len(piece))
            for piece in np.split(documents, begins)
        ]

    def part(self, first: int, last: int) -> "TokenStream":
        """The documents from `first` to before `last`."""
        return replace(
            self, starts=self.starts[first : last + 1], mixture=(), first_document=self.first_document + first
        )


def joined(streams: Sequence[TokenStream]) -> TokenStream:
    """Streams of whole folders as one."""
    if len(streams) == 1:
        return streams[0]
    counts = np.cumsum([0, *(len(stream.starts) - 1 for stream in streams)])
    offsets = np.cumsum([0, *(stream.num_tokens for stream in streams)])

    def place_of(number: int) -> tuple[str, int]:
        which = int(np.searchsorted(counts, number, side="right")) - 1
        return streams[which].place_of(number - int(counts[which]))

    moved = list(zip(streams, offsets, strict=False))
    arrays: list[np.ndarray] = []
    for stream in streams:  # the last END of each but the last is the first of the next
        assert isinstance(stream.tokens, Shards)
        arrays[-1:] = [array[:-1] for array in arrays[-1:]]
        arrays += stream.tokens.arrays
    return TokenStream(
        Shards(arrays),
        np.concatenate([*(stream.starts[:-1] + offset for stream, offset in moved), offsets[-1:]]),
        np.concatenate([stream.unscored + offset for stream, offset in moved]),
        place_of=place_of,
        text_hashes=np.concatenate([stream.text_hashes for stream in streams]),
    )
