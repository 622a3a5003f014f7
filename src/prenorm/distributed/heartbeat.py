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
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import NoReturn

from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import Store

from ..private_torch import calls_begun
from .board import Board, OthersBoard
from .launch import Launch
from .process_state import Identity, end, is_gone, is_stopped, own_identity
from .rendezvous import gather
from .suspects import FEW_BEATS, Beat, Seen, Spot, Word, culprit

LOST = 3  # the exit code of a process that ends because another one was lost
BEAT_SECONDS = 1.0
KEYS_PER_SECOND = 10_000  # that all processes together may read of the store
GRACE_SECONDS = 2.0  # for what else the others may have to say
ENDED_WITH = "it ended with"  # begins the last word of a process
# Code of PyTorch's that waits for other processes. Beneath its pipelines and FSDP2 it is a model's that runs.
WAITING = re.compile(r"torch/distributed/((pipelining|fsdp/_fully_shard)/)?\w+\.py$")

Say = Callable[[str], None]


class Heartbeat:
    """Both threads, and this process' own spot, which the main thread moves with `at`."""

    def __init__(self, store: Store, launch: Launch, timeout: float, *, say: Say, note: Say) -> None:
        """say: shows a line. note: writes details to a log."""
        self._store, self._launch, self._timeout, self._say, self._note = store, launch, timeout, say, note
        self._rank, world_size = launch.rank, launch.world_size
        self._spot, self._beats, self._board = Spot(), Beat(), Board()
        self._groups: dict[str, ProcessGroup] = {}
        self.is_waiting = False  # for others, but in no collective
        self._main = threading.get_ident()
        self._keys = [f"beat/{each}" for each in range(world_size)]
        self._interval = max(min(BEAT_SECONDS, timeout / 4), world_size**2 / KEYS_PER_SECOND)
        self._ended, self._misses_nobody = threading.Event(), False
        self._ticked = (0.0, time.monotonic())
        self._moved_at, self._cut_off_at = 0.0, math.inf
        self._broken = ""  # why the store does not answer
        self._word: Word | None = None  # who was lost, as another process, or that one itself, says
        self._here = own_identity()
        store.set(f"who/{self._rank}", json.dumps([self._here, self._board.descriptor]))
        self._beat()
        if self._rank == 0:
            store.set("lost", "")
        store.get("lost")  # waits for rank 0
        self._answered = 0.0
        everyone = [(Identity(*who), board) for who, board in gather(store, "who", world_size)]
        self._seen = [Seen(who, self._board_of(who, board), 0.0) for who, board in everyone]
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
        self._spot, self._moved_at = Spot(step, phase, patient, self._spot.moves + 1), self._now()
        self._board.write([astuple(self._spot), None])

    def count(self, groups: Mapping[str, ProcessGroup]) -> None:
        """Count the collectives of these groups, by names that are the same in all their processes.

        Of those that wait within C++, as DDP's do, this alone tells who waits for whom. All processes of a group must
        begin the same ones in the same order.
        """
        self._groups = dict(groups)

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
        self._leave_on_board(self._name(self._rank, f"{ENDED_WITH} {word}"))

    def cut_off(self) -> NoReturn:
        """A collective of the main thread failed. The watch finds out who was lost, and ends this process."""
        self._cut_off_at, self._beats.is_cut_off = self._now(), True
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
        beat.beats, beat.is_waiting = beat.beats + 1, self.is_waiting or _is_in_a_collective(self._main)
        beat.calls = {name: calls_begun(group) for name, group in self._groups.items()}
        self._store.set(self._keys[self._rank], json.dumps([astuple(self._spot), astuple(beat)]))

    def _read(self) -> None:
        *beats, word = self._store.multi_get([*self._keys, "lost"])
        now = self._now()
        for seen, text in zip(self._seen, beats, strict=True):
            spot, beat = json.loads(text)
            before = seen.beat.beats
            seen.spot, seen.beat = Spot(*spot), Beat(*beat)
            if seen.beat.beats != before:
                seen.at = now
        self._answered = now
        if word:
            self._word = tuple(json.loads(word))

    def _watch(self) -> None:
        while not self._ended.wait(self._interval / 2):
            self._ticked = (self._now(), time.monotonic())
            if not self._misses_nobody:
                self._judge()

    def _now(self) -> float:
        """The seconds that this process was awake: it may have been stopped, perhaps together with the others."""
        seconds, at = self._ticked
        return seconds + min(time.monotonic() - at, 2 * self._interval)

    def _judge(self) -> None:
        """End this process where another one was lost."""
        now, read = self._now(), self._answered  # the newest that is known is of then
        others = [(rank, seen) for rank, seen in enumerate(self._seen) if rank != self._rank]
        gone = [rank for rank, seen in others if is_gone(seen.who, self._here)]
        # One that has ended because of another one, perhaps just now, is not the one that was lost.
        if word := self._word or next(filter(None, (seen.word() for _, seen in others)), None):
            rank, what = word
            # It may be an error of all, which the main thread has met, too.
            if what.startswith(ENDED_WITH):
                time.sleep(GRACE_SECONDS)
            if not self._misses_nobody:
                self._end_by(rank, what)
            return
        if gone:
            self._end_by(gone[0], "its process is gone: killed, perhaps because memory ran out")
        late = self._timeout + self._interval  # it may have stopped just before the next beat
        if self._broken or now - read > late:
            self._end_by(0, f"the store that all processes meet in has not answered for {now - read:.0f} s")
        for rank, seen in others:
            if read - seen.at > late:
                self._end_by(rank, f"it has not answered for {self._timeout:g} s: stopped, or out of reach")
        stuck, cut_off = now - self._moved_at - self._timeout, now - self._cut_off_at - GRACE_SECONDS
        if stuck > 0 and not self._spot.patient:
            self._end_by_culprit(f"it has not moved on for {self._timeout:g} s", stuck)
        if cut_off > 0:
            self._end_by_culprit("a collective with it failed", cut_off)

    def _end_by_culprit(self, what: str, seconds: float) -> None:
        """End this process by the rank that all others wait for, once it is known; it has been so for some seconds."""
        silent = [self._answered - seen.at for seen in self._seen]
        rank = culprit(self._seen, silent, interval=self._interval, timeout=self._timeout, seconds=seconds)
        if rank is not None:
            is_silent = silent[rank] > FEW_BEATS * self._interval
            self._end_by(rank, f"it has not answered for {silent[rank]:.0f} s" if is_silent else what)

    def _board_of(self, who: Identity, descriptor: int) -> OthersBoard | None:
        return OthersBoard(who.pid, descriptor) if self._here.machine and who.machine == self._here.machine else None

    def _leave_on_board(self, word: Word) -> None:
        """Have the word read by those of this machine that look only after this process, and the store, have ended."""
        rank, what = word
        self._board.write([astuple(self._spot), (rank, what[:500])])

    def _name(self, rank: int, what: str) -> Word:
        """Have one rank named by all: the first that anybody names."""
        word = self._store.compare_set("lost", "", json.dumps([rank, what]))
        rank, what = json.loads(word)
        return rank, what

    def _end_by(self, rank: int, what: str) -> NoReturn:
        """Say who was lost and where, see to it that it does not go on alone, and end this process."""
        if not self._broken and self._now() - self._answered < FEW_BEATS * self._interval:
            with suppress(RuntimeError):
                rank, what = self._name(rank, what)
        self._leave_on_board((rank, what))
        seen = self._seen[rank]
        who = f"Rank {rank}"
        if self._launch.has_agent and "the store" in what:
            who, what = "torchrun", f"{what}; it has ended, or its machine is out of reach"
        self._say(
            f"{who} was lost at {seen.where()}: {what}. All processes end; the same command with --resume goes on from "
            "the newest checkpoint."
        )
        for each, other in enumerate(self._seen):
            self._note(f"rank {each} was last at {other.where()}, {self._now() - other.at:.0f} s ago")
        stack = "".join(traceback.format_stack(sys._current_frames().get(self._main)))
        self._note(f"this process was at\n{stack}".rstrip())
        others = [seen for each, seen in enumerate(self._seen) if each != self._rank]
        for other in others:
            hangs = other is seen and not what.startswith(ENDED_WITH)
            if hangs or is_stopped(other.who, self._here) or self._answered - other.at > self._timeout:
                end(other.who, self._here)
        if self._launch.holds_store:  # which ends with this process: let the others read it once more
            last = time.monotonic() + 2 * self._interval
            while time.monotonic() < last and not all(is_gone(other.who, self._here) for other in others):
                time.sleep(self._interval / 10)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(LOST)


def _is_in_a_collective(thread: int) -> bool:
    """Whether a thread waits within a call of torch.distributed, by the innermost frames of Python."""
    frame = sys._current_frames().get(thread)
    while frame is not None and Path(frame.f_code.co_filename).name == "_ops.py":  # which calls the operator that waits
        frame = frame.f_back
    return frame is not None and bool(WAITING.search(Path(frame.f_code.co_filename).as_posix()))
