"""Several processes that train one model: what they agree on goes through a store, sums through torch.distributed."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore

from ..errors import ConfigError, PrenormError, ProcessError
from ..private_torch import set_group_timeout
from .heartbeat import BEAT_SECONDS, GRACE_SECONDS, LOST, Heartbeat, Say
from .launch import Launch
from .layout import Layout
from .mesh import AXES, make_mesh
from .processes import Processes
from .rendezvous import gather, meet

POLL_SECONDS = 0.05
TELL_SECONDS = 2.0  # for the others to meet the error, too, that ends this process
LINGER_SECONDS = 5.0  # at the end, for those that are slower

# What a collective says when another process is gone or late, in the words of gloo, NCCL and torch's stores.
OF_A_COLLECTIVE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed? ?out|recvvalue", re.IGNORECASE
)


class Group(Processes):
    """One of several processes.

    `Group` finds the others, and the heartbeat begins; `connect` starts torch.distributed, once it is sure that all
    want the same.
    """

    def __init__(self, launch: Launch, layout: Layout, *, timeout: float, say: Say, note: Say) -> None:
        super().__init__(launch, layout)
        self._store, second = meet(launch, timeout, say)
        self._agreements = 0
        self._heartbeat = Heartbeat(second, launch, timeout, say=say, note=note)
        self._timeout = timeout
        self._on_sigterm: Any = None
        if threading.current_thread() is threading.main_thread():
            self._on_sigterm = signal.signal(signal.SIGTERM, _end_soon)

    def connect(self, device_type: str) -> None:
        """Start torch.distributed, and make the mesh. Sums of single numbers go over gloo, whatever the device."""
        limit = timedelta(seconds=self._timeout)
        if self.launch.is_on_one_machine and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or gloo looks up the machine's name
        dist.init_process_group(
            "gloo" if device_type == "cpu" else f"cpu:gloo,{device_type}:nccl",
            store=PrefixStore("torch", self._store),
            rank=self.rank,
            world_size=self.launch.world_size,
            timeout=limit,
        )
        self.mesh = make_mesh(self.place.layout, device_type)
        assert dist.group.WORLD is not None
        counted: dict[str, ProcessGroup] = {"": dist.group.WORLD}
        for axis, group in zip(AXES, self.mesh.get_all_groups(), strict=True):
            set_group_timeout(limit, group)
            if axis != "pp":  # its stages send different numbers of times
                counted[f"{axis} of rank {dist.get_process_group_ranks(group)[0]}"] = group
        self._heartbeat.count(counted)

    def at(self, step: int, phase: str, *, patient: bool = False) -> None:
        """As `Processes.at`."""
        self._heartbeat.at(step, phase, patient=patient)

    def first(self, what: str, work: Callable[[], Any], *, patient: bool = True) -> Any:
        """As `Processes.first`."""
        self._agreements += 1
        key = f"first/{self._agreements}"
        self.at(self._heartbeat.step, what, patient=patient)
        if self.is_first:
            try:
                outcome = {"gave": work()}
            except (PrenormError, OSError) as error:
                self._store.set(key, json.dumps({"raised": str(error)}))
                raise
            self._store.set(key, json.dumps(outcome))
            return outcome["gave"]
        self._wait(lambda: self._store.check([key]))
        outcome = json.loads(self._store.get(key))
        if "raised" in outcome:
            raise PrenormError(outcome["raised"])
        return outcome["gave"]

    def compare(self, values: Mapping[str, Any]) -> None:
        """As `Processes.compare`."""
        self._agreements += 1
        name = f"compare/{self._agreements}"
        self._store.set(f"{name}/{self.rank}", json.dumps(dict(values)))
        self._store.add(name, 1)
        self._wait(lambda: self._store.add(name, 0) == self.launch.world_size)
        first, *others = gather(self._store, name, self.launch.world_size)
        differences = [
            f"{key} is {first.get(key)!r} in rank 0 and {other.get(key)!r} in rank {rank}"
            for rank, other in enumerate(others, start=1)
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if differences:
            more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise ConfigError(
                f"all processes of a run must have the same settings, versions and text, but "
                f"{'; '.join(differences[:5])}{more}; start all of them with one command, in one environment."
            )

    def sum(self, *numbers: float) -> list[float]:
        """As `Processes.sum`."""
        return self._reduced(numbers, torch.float64, dist.ReduceOp.SUM)

    def largest(self, *numbers: int) -> list[int]:
        """As `Processes.largest`."""
        return self._reduced(numbers, torch.int64, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Any, dtype: torch.dtype, op: dist.ReduceOp.RedOpType) -> list[Any]:
        values = torch.tensor(numbers, dtype=dtype)
        dist.all_reduce(values, op)
        return values.tolist()

    def _wait(self, there: Callable[[], bool]) -> None:
        """Until all others have come so far, however long that takes; the heartbeat notices when one does not live."""
        seconds = POLL_SECONDS / 10
        self._heartbeat.is_waiting = True
        while not there():
            time.sleep(seconds)
            seconds = min(2 * seconds, POLL_SECONDS)
        self._heartbeat.is_waiting = False

    def end(self) -> None:
        """The end of a run in which nothing went wrong: all processes leave together."""
        self.at(self._heartbeat.step, "the end", patient=True)
        self._all_come("ended")
        self._heartbeat.miss_nobody()
        self._disconnect()
        self._heartbeat.stop()
        self._leave()

    def failed(self, error: BaseException) -> bool:
        """The end of a run in which this process met an error. Gives whether all others met the same one.

        Does not return where it was another process that was lost: then the heartbeat ends this one, and says so.
        """
        if _is_of_a_collective(error):
            self._heartbeat.cut_off()
        self._heartbeat.miss_nobody()
        # Should the store not answer: a call of it may never return.
        last = threading.Timer(TELL_SECONDS + LINGER_SECONDS + self._timeout, os._exit, [LOST])
        last.daemon = True
        last.start()
        try:
            told_by_all = self._tell(_word_of(error))
            if told_by_all and dist.is_initialized():
                self._disconnect()
            self._leave()
            return told_by_all
        except RuntimeError:  # the store has ended with rank 0
            return False
        finally:
            self._heartbeat.stop()
            last.cancel()

    def _tell(self, word: str) -> bool:
        """Tell the others what ends this process. Gives whether the same ends all of them."""
        self._store.set(f"failed/{self.rank}", word)
        self._store.add("failed", 1)
        end = time.monotonic() + TELL_SECONDS
        while self._store.add("failed", 0) < self.launch.world_size:
            if time.monotonic() > end:
                self._heartbeat.last_word(word)
                return False
            time.sleep(POLL_SECONDS)
        words = self._store.multi_get([f"failed/{rank}" for rank in range(self.launch.world_size)])
        return all(each.decode() == word for each in words)

    def _disconnect(self) -> None:
        """End torch.distributed together. All is done, so that it does not matter if one dies only now."""
        with suppress(RuntimeError):
            dist.barrier()  # a process that ends before another has heard its last word aborts that one
        dist.destroy_process_group()

    def _all_come(self, name: str) -> None:
        self._store.add(name, 1)
        self._wait(lambda: self._store.add(name, 0) == self.launch.world_size)

    def _leave(self) -> None:
        """The process that holds the store goes last, if the others do not take too long."""
        if self._on_sigterm is not None:
            signal.signal(signal.SIGTERM, self._on_sigterm)
        self._store.add("left", 1)
        end = time.monotonic() + LINGER_SECONDS
        while self.launch.holds_store and self._store.add("left", 0) < self.launch.world_size:
            if time.monotonic() > end:
                return
            time.sleep(POLL_SECONDS)


def _end_soon(number: int, _: FrameType | None) -> None:
    """End by a signal, once the heartbeat had time to say why: torchrun sends it to all others when one has died."""
    time.sleep(2 * GRACE_SECONDS + BEAT_SECONDS)  # until a last word was heard and waited upon
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether another process is the cause: a collective with it, or the store, failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, dist.DistError | ProcessError):
            return True
        if type(cause) is RuntimeError and OF_A_COLLECTIVE.search(str(cause)):
            return True
        cause = cause.__cause__
    return False


def _word_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PrenormError | OSError) else f"{type(error).__name__}: {text}"[:500]
