"""Where each process of a run is, told to all others, and noticed when one of them is lost.

Every second or so one thread writes a beat into the store and reads those of all others; another one judges what was
read, for a store may never answer. It ends its own process, with a diagnosis, when another one

- has ended (seen at once on the same machine; on another one its beats stop),
- has not beaten for `timeout` seconds: it is stopped, or its machine is out of reach,
- has not moved on for `timeout` seconds, while others wait for it,
- has left a last word: an error of its own.

The main thread cannot do this: it is in a collective, which waits for the one that is lost.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import NoReturn

from torch.distributed.distributed_c10d import Store

from .board import Board, OthersBoard
from .launch import Launch
from .process_state import Identity, end, is_gone, own_identity
from .rendezvous import gather

LOST = 3  # the exit code of a process that ends because another one was lost
BEAT_SECONDS = 1.0
KEYS_PER_SECOND = 10_000  # that all processes together may read of the store
GRACE_SECONDS = 2.0  # for what else the others may have to say
ENDED_WITH = "it ended with"  # begins the last word of a process

Say = Callable[[str], None]


@dataclass(slots=True)
class Spot:
    """Where a process is. patient: what it does there may take longer than the timeout. moves: it counts the moves."""

    step: int = 0
    phase: str = "the start"
    patient: bool = True
    moves: int = 0


@dataclass(slots=True)
class Beat:
    """How a process is. beats: it counts them."""

    beats: int = 0
    is_waiting: bool = False  # within a call of torch.distributed
    is_cut_off: bool = False  # a collective failed


@dataclass(slots=True)
class Seen:
    """What is known of a rank: who it is, its newest spot and beat, when it beat and when it moved."""

    who: Identity
    board: OthersBoard | None
    at: float
    moved_at: float
    spot: Spot = field(default_factory=Spot)
    beat: Beat = field(default_factory=Beat)

    def where(self) -> str:
        """Where it is, or was when it died."""
        written = self.board and self.board.read()
        spot = Spot(*written) if written else self.spot
        is_waiting = self.beat.is_waiting and spot.moves == self.spot.moves
        step = f"step {spot.step:,}, " if spot.step else ""
        return f"{step}{spot.phase}{', in a collective' if is_waiting else ''}"


class Heartbeat:
    """Both threads, and this process' own spot, which the main thread moves with `at`."""

    def __init__(self, store: Store, launch: Launch, timeout: float, *, say: Say, note: Say) -> None:
        """say: shows a line. note: writes details to a log."""
        self._store, self._launch, self._timeout, self._say, self._note = store, launch, timeout, say, note
        self._rank, world_size = launch.rank, launch.world_size
        self._spot, self._beats, self._board = Spot(), Beat(), Board()
        self._main = threading.get_ident()
        self._keys = [f"beat/{each}" for each in range(world_size)]
        self._interval = max(min(BEAT_SECONDS, timeout / 4), world_size**2 / KEYS_PER_SECOND)
        self._ended, self._misses_nobody = threading.Event(), False
        self._cut_off_at = 0.0
        self._broken = ""  # why the store does not answer
        self._word: tuple[int, str] | None = None  # who was lost, as another process, or that one itself, says
        self._here = own_identity()
        store.set(f"who/{self._rank}", json.dumps([self._here, self._board.descriptor]))
        self._beat()
        if self._rank == 0:
            store.set("lost", "")
        store.get("lost")  # waits for rank 0
        self._answered = now = time.monotonic()
        everyone = [(Identity(*who), board) for who, board in gather(store, "who", world_size)]
        self._seen = [Seen(who, self._board_of(who, board), now, now) for who, board in everyone]
        gather(store, "beat", world_size)
        self._threads = [
            threading.Thread(target=work, name=f"prenorm-{work.__name__[1:]}", daemon=True)
            for work in (self._exchange, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def step(self) -> int:
        """The step that this process is in."""
        return self._spot.step

    def at(self, step: int, phase: str, *, patient: bool = False) -> None:
        """This process has come to a phase of a step."""
        self._spot = spot = Spot(step, phase, patient, self._spot.moves + 1)
        self._board.write(astuple(spot))

    def miss_nobody(self) -> None:
        """The process comes to its end: it goes on beating, but does not end because of others."""
        self._misses_nobody = True

    def stop(self) -> None:
        """No more beats."""
        self._ended.set()
        for thread in self._threads:
            thread.join(self._interval)

    def last_word(self, word: str) -> None:
        """Tell the others that this process ends, and why."""
        self._name(self._rank, f"{ENDED_WITH} {word}")

    def cut_off(self) -> NoReturn:
        """A collective of the main thread failed. The watch finds out who was lost, and ends this process."""
        self._cut_off_at, self._beats.is_cut_off = time.monotonic(), True
        while True:
            time.sleep(self._timeout)

    def _exchange(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self._beat()
                self._read()
            except RuntimeError as error:  # torch.distributed's, of a store that has ended
                self._broken = str(error).splitlines()[0]
                return

    def _beat(self) -> None:
        beat = self._beats
        beat.beats, beat.is_waiting = beat.beats + 1, _is_in_a_collective(self._main)
        self._store.set(self._keys[self._rank], json.dumps([astuple(self._spot), astuple(beat)]))

    def _read(self) -> None:
        *beats, word = self._store.multi_get([*self._keys, "lost"])
        self._answered = now = time.monotonic()
        for seen, text in zip(self._seen, beats, strict=True):
            spot, beat = json.loads(text)
            before = (seen.spot.moves, seen.beat.beats)
            seen.spot, seen.beat = Spot(*spot), Beat(*beat)
            if seen.spot.moves != before[0]:
                seen.moved_at = now
            if seen.beat.beats != before[1]:
                seen.at = now
        if word:
            self._word = tuple(json.loads(word))

    def _watch(self) -> None:
        while not self._ended.wait(self._interval / 2):
            if not self._misses_nobody:
                self._judge()

    def _judge(self) -> None:
        """End this process where another one was lost."""
        now, read = time.monotonic(), self._answered  # the newest that is known is of then
        others = [(rank, seen) for rank, seen in enumerate(self._seen) if rank != self._rank]
        if self._word:
            rank, what = self._word
            # It may be an error of all, which the main thread has met, too.
            if what.startswith(ENDED_WITH):
                time.sleep(GRACE_SECONDS)
            if not self._misses_nobody:
                self._end_by(rank, what)
            return
        for rank, seen in others:
            if is_gone(seen.who, self._here):
                self._end_by(rank, "its process is gone: killed, perhaps because memory ran out")
        if self._broken or now - read > self._timeout:
            self._end_by(0, f"the store that all processes meet in has not answered for {now - read:.0f} s")
        for rank, seen in others:
            if read - seen.at > self._timeout:
                self._end_by(rank, f"it has not answered for {self._timeout:g} s: stopped, or out of reach")
        stuck = read - self._seen[self._rank].moved_at - self._timeout
        if stuck > 0 and not self._spot.patient:
            self._end_by_culprit(f"it has not moved on for {self._timeout:g} s", stuck)
        cut_off = now - self._cut_off_at - GRACE_SECONDS
        if self._cut_off_at and cut_off > 0:
            rank, seen = min(others, key=lambda other: other[1].at)
            if read - seen.at > 2.5 * self._interval:
                self._end_by(rank, f"it has not answered for {read - seen.at:.0f} s")
            self._end_by_culprit("a collective with it failed", cut_off)

    def _end_by_culprit(self, what: str, seconds: float) -> None:
        """End this process by the rank that all others wait for: in no collective itself, and furthest behind.

        seconds: for how long it has been so. Several ranks may look as if they were in none: DDP's collectives run
        below Python, and an error takes time to come out of one. They fail at about the same time, so that one rank is
        left a few beats later.
        """

        def order(rank: int) -> tuple[bool, bool, int, int]:
            spot, beat = self._seen[rank].spot, self._seen[rank].beat
            return beat.is_cut_off, beat.is_waiting, spot.step, spot.moves

        beats = [seen.beat for seen in self._seen]
        if sum(not (beat.is_cut_off or beat.is_waiting) for beat in beats) > 1 and seconds < 2.5 * self._interval:
            return
        self._end_by(min(range(len(beats)), key=order), what)

    def _board_of(self, who: Identity, descriptor: int) -> OthersBoard | None:
        return OthersBoard(who.pid, descriptor) if self._here.machine and who.machine == self._here.machine else None

    def _name(self, rank: int, what: str) -> tuple[int, str]:
        """Have one rank named by all: the first that anybody names."""
        word = self._store.compare_set("lost", "", json.dumps([rank, what]))
        rank, what = json.loads(word)
        return rank, what

    def _end_by(self, rank: int, what: str) -> NoReturn:
        """Say who was lost and where, see to it that it does not go on alone, and end this process."""
        if not self._broken and time.monotonic() - self._answered < 2.5 * self._interval:
            with suppress(RuntimeError):
                rank, what = self._name(rank, what)
        seen = self._seen[rank]
        who = f"Rank {rank}"
        if self._launch.has_agent and "the store" in what:
            who, what = "torchrun", f"{what}; it has ended, or its machine is out of reach"
        self._say(
            f"{who} was lost at {seen.where()}: {what}. All processes end; the same command with --resume goes on from "
            "the newest checkpoint."
        )
        for each, other in enumerate(self._seen):
            self._note(f"rank {each} was last at {other.where()}, {time.monotonic() - other.at:.0f} s ago")
        stack = "".join(traceback.format_stack(sys._current_frames().get(self._main)))
        self._note(f"this process was at\n{stack}".rstrip())
        if rank != self._rank and not what.startswith(ENDED_WITH):
            end(seen.who, self._here)
        if self._launch.holds_store:  # which ends with this process: let the others read it once more
            time.sleep(2 * self._interval)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(LOST)


def _is_in_a_collective(thread: int) -> bool:
    """Whether a thread is within a call of torch.distributed, by the innermost frames of Python."""
    frame = sys._current_frames().get(thread)
    for _ in range(3):
        if frame is None:
            return False
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "distributed" and path.parent.parent.name == "torch":
            return True
        frame = frame.f_back
    return False
