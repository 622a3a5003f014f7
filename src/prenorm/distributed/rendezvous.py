"""How the processes of a run find each other: one store, in which each of them says that it is there."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch documents it there
from torch.distributed.distributed_c10d import PrefixStore, Store

from ..errors import ProcessError
from .launch import Launch

BAD_USAGE = 2  # the exit code of the command line for it
LOOK_SECONDS = 0.1  # between two looks at whether all are there


def meet(launch: Launch, timeout: float, say: Callable[[str], None]) -> tuple[Store, Store]:
    """The store of a run, once all its processes are there, twice: each connection is for one thread at a time.

    timeout: seconds that each waits for the others. If something else than a store answers, or the store is stopped,
    its call never returns: then this says why, by `say`, and ends the process.
    Raises ProcessError that says which of them is missing, or why the store cannot be reached.
    """
    prefix = f"prenorm/{launch.attempt}"
    with _at_most(timeout + 1, say, _unreachable(launch, timeout)):
        server = _connect(launch, timeout, holds=launch.holds_store)
    store = PrefixStore(prefix, server)
    try:
        stopped = f"rank {launch.rank} waited for the others, but rank 0 does not answer any more."
        with _at_most(timeout + 3, say, stopped):
            _be_counted(store, launch)
            _wait_for_all(store, launch, timeout)
            _check_sizes(store, launch)
    except ProcessError as error:
        if launch.holds_store:  # the others read this, and the store ends with this process
            store.set("refused", str(error))
            time.sleep(10 * LOOK_SECONDS)
        raise
    except RuntimeError as error:  # of a store that is gone
        raise ProcessError(
            f"rank {launch.rank} lost rank 0 at {launch.address}:{launch.port} while it waited for the others; rank 0 "
            f"says why it ended. ({_first_line(error)})"
        ) from error
    return store, PrefixStore(prefix, _connect(launch, timeout, holds=False))


def _connect(launch: Launch, timeout: float, *, holds: bool) -> TCPStore:
    """A connection to the store, which is begun in this process if it holds it."""
    try:
        return TCPStore(
            launch.address,
            launch.port,
            launch.world_size,
            is_master=holds,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        reason = _first_line(error)
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            raise ProcessError(
                f"rank 0 must listen on port {launch.port} of its machine, but another program has it, perhaps another "
                "run; give all ranks another MASTER_PORT."
            ) from error
        raise ProcessError(f"{_unreachable(launch, timeout)} ({reason})") from error


def _unreachable(launch: Launch, timeout: float) -> str:
    return (
        f"rank {launch.rank} must reach rank 0 at {launch.address}:{launch.port} (MASTER_ADDR and MASTER_PORT), but "
        f"did not within {timeout:g} s; is that the machine of rank 0, has rank 0 been started, is the port open "
        "between them, or does another program listen there?"
    )


def _be_counted(store: Store, launch: Launch) -> None:
    if store.add(f"came/{launch.rank}", 1) > 1:
        raise ProcessError(
            f"each of {launch.world_size} processes must have a RANK of its own, but two of them are rank "
            f"{launch.rank}; number them from 0 to {launch.world_size - 1}."
        )
    store.set(f"hello/{launch.rank}", json.dumps(launch.world_size))
    store.add("came", 1)


def _wait_for_all(store: Store, launch: Launch, timeout: float) -> None:
    end = time.monotonic() + timeout
    while store.add("came", 0) < launch.world_size:
        if store.check(["refused"]):
            raise ProcessError(f"rank 0 has ended: {store.get('refused').decode()}")
        if time.monotonic() > end:
            missing = [rank for rank in range(launch.world_size) if not store.check([f"hello/{rank}"])]
            raise ProcessError(
                f"all {launch.world_size} processes must come within {timeout:g} s, but {_ranks(missing)} did not; "
                f"start all of them, each with WORLD_SIZE={launch.world_size} and a RANK of its own, or give a longer "
                "--timeout."
            )
        time.sleep(LOOK_SECONDS)


def _check_sizes(store: Store, launch: Launch) -> None:
    sizes = gather(store, "hello", launch.world_size)
    other = next((rank for rank, size in enumerate(sizes) if size != launch.world_size), None)
    if other is not None:
        raise ProcessError(
            f"all processes must have one WORLD_SIZE, but it is {launch.world_size} in rank {launch.rank} and "
            f"{sizes[other]} in rank {other}."
        )


def gather(store: Store, name: str, world_size: int) -> list[Any]:
    """What every rank has set under NAME/RANK, as JSON; waits for all of them."""
    return [json.loads(text) for text in store.multi_get([f"{name}/{rank}" for rank in range(world_size)])]


@contextmanager
def _at_most(seconds: float, say: Callable[[str], None], why: str) -> Iterator[None]:
    """Say why and end the process, as bad usage, unless what is within takes less time than that."""

    def end() -> None:
        say(why)
        os._exit(BAD_USAGE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
