"""What is known of the processes of a run, and which of them the others wait for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .board import OthersBoard
from .process_state import Identity

FEW_BEATS = 2.5
Word = tuple[int, str]  # a rank that was lost, and how


@dataclass(slots=True)
class Spot:
    """Where a process is. patient: what it does there may take longer than the timeout. moves: it counts the moves."""

    step: int = 0
    phase: str = "the start"
    patient: bool = True
    moves: int = 0


@dataclass(slots=True)
class Beat:
    """How a process is. beats: it counts them. calls: how many collectives it has begun, by group."""

    beats: int = 0
    is_waiting: bool = False  # for others
    is_cut_off: bool = False  # a collective failed
    calls: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Seen:
    """What is known of a rank: who it is, its newest spot and beat, and when it beat."""

    who: Identity
    board: OthersBoard | None
    at: float
    spot: Spot = field(default_factory=Spot)
    beat: Beat = field(default_factory=Beat)

    def where(self) -> str:
        """Where it is, or was when it died."""
        written = self.board and self.board.read()
        spot = Spot(*written[0]) if written else self.spot
        is_waiting = self.beat.is_waiting and spot.moves == self.spot.moves
        step = f"step {spot.step:,}, " if spot.step else ""
        return f"{step}{spot.phase}{', waiting for others' if is_waiting else ''}"

    def word(self) -> Word | None:
        """Because of whom it has ended, or is about to; None where it is not, or is on another machine."""
        written = self.board and self.board.read()
        if not written or not written[1]:
            return None
        rank, what = written[1]
        return rank, what


def culprit(
    seen: Sequence[Seen], silent: Sequence[float], *, interval: float, timeout: float, seconds: float
) -> int | None:
    """The rank that all others wait for: it waits for nobody, or is silent. None as long as it is not known.

    silent: for how many seconds each has not beaten. interval: of the beats. seconds: for how long somebody has been
    missed. Several ranks may look as if they waited for nobody: an error takes time to come out of a collective, and
    not all groups are counted. One is left a few beats later; if not, it is the one furthest behind.
    """
    fewest: dict[str, int] = {}
    for one in seen:
        for group, calls in one.beat.calls.items():
            fewest[group] = min(calls, fewest.get(group, calls))

    def order(rank: int) -> tuple[bool, bool, bool, int, int]:
        spot, beat = seen[rank].spot, seen[rank].beat
        # Who has begun a collective that another one of its group has not waits for that one, or soon will.
        is_ahead = any(calls > fewest[group] for group, calls in beat.calls.items())
        return beat.is_cut_off, beat.is_waiting, is_ahead, spot.step, spot.moves

    ranks, few_beats = range(len(seen)), FEW_BEATS * interval
    most_silent = max(ranks, key=silent.__getitem__)
    idle = [rank for rank in ranks if silent[rank] <= few_beats and not any(order(rank)[:3])]
    if silent[most_silent] > timeout - 1.5 * interval:  # stopped before the others began to wait for it
        return most_silent
    if len(idle) == 1:
        return idle[0]
    if seconds <= few_beats:
        return None
    return most_silent if silent[most_silent] > few_beats else min(idle or ranks, key=order)
