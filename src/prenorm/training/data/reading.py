"""What a corpus gave: how many documents were read, what was skipped and left out, and why, in one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass

from .corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The numbers behind the first line of a run. `skipped` and `left_out` count by reason, `first` has a name each."""

    documents: int
    bytes: int
    files: int
    skipped: Mapping[str, int]
    skipped_bytes: int
    left_out: Mapping[str, int]
    first: Mapping[str, str]

    @classmethod
    def of(cls, corpus: Corpus, *, documents: int, num_bytes: int) -> "Reading":
        """What the last pass through a corpus gave."""
        return cls(
            documents=documents,
            bytes=num_bytes,
            files=corpus.files,
            skipped=dict(corpus.skipped),
            skipped_bytes=corpus.skipped_bytes,
            left_out=dict(corpus.left_out),
            first=dict(corpus.first),
        )

    @property
    def passed_over(self) -> str:
        """How many files, lines and rows gave no document, and why."""
        skipped, left_out = _counted(self.skipped), _counted(self.left_out)
        skipped = f"; skipped {skipped}, {_size(self.skipped_bytes)}" if skipped else ""
        return skipped + (f"; left out {left_out}" if left_out else "")

    def __str__(self) -> str:
        read = f"Read {count(self.documents, 'document')}, {_size(self.bytes)}, from {count(self.files, 'file')}"
        first = ", ".join(f"{shown(name)} ({reason})" for reason, name in sorted(self.first.items()))
        skipped = f" The first of each kind that was skipped: {first}." if first else ""
        return f"{read}{self.passed_over}.{skipped}"


def count(number: int, thing: str) -> str:
    """A number of things."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def shown(name: str) -> str:
    """A name as it can be printed."""
    return name if name.isprintable() else repr(name)


def _counted(reasons: Mapping[str, int]) -> str:
    listed = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))
    return f"{sum(reasons.values()):,} ({listed})" if listed else ""


def _size(num_bytes: int) -> str:
    return count(num_bytes, "byte") if num_bytes < 50_000 else f"{num_bytes / 1e6:,.1f} MB"
