"""How this process was started: alone, or as one of several, by torchrun or by hand with the same variables."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import ConfigError, PrenormError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A process of a run: its number `rank` among `world_size`, and where rank 0 is found.

    local_rank: its number on its machine. has_agent: torchrun started it, and holds the store that all meet in;
    otherwise rank 0 holds it. attempt: how often torchrun has started the run before.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "localhost"
    port: int = 0
    by_torchrun: bool = False
    has_agent: bool = False
    attempt: int = 0

    @property
    def holds_store(self) -> bool:
        """Whether the store that all meet in is in this process."""
        return self.rank == 0 and not self.has_agent

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all processes are known to be on this machine."""
        return self.address in LOOPBACK


def launched(environ: Mapping[str, str] = os.environ) -> Launch:
    """How the environment says that this process was started; without WORLD_SIZE, alone.

    Raises ConfigError for variables that contradict each other.
    """
    if "WORLD_SIZE" not in environ:
        if "RANK" in environ:
            raise ConfigError(
                "a process with a RANK must have a WORLD_SIZE, too, but WORLD_SIZE is not set; set it (and MASTER_ADDR "
                "and MASTER_PORT) in every process, or start them with torchrun."
            )
        return Launch()
    world_size = _number(environ, "WORLD_SIZE", at_least=1)
    if world_size == 1:
        return Launch()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if missing:
        raise ConfigError(
            f"each of WORLD_SIZE={world_size} processes must have RANK, MASTER_ADDR and MASTER_PORT, but "
            f"{', '.join(missing)} is not set; torchrun sets all of them."
        )
    rank, port = _number(environ, "RANK", at_least=0), _number(environ, "MASTER_PORT", at_least=1)
    if rank >= world_size:
        raise ConfigError(f"RANK must be below WORLD_SIZE, but they are {rank} and {world_size}; ranks begin at 0.")
    if port >= 2**16:
        raise ConfigError(f"MASTER_PORT must be a port, 1 to 65535, not {port}.")
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environ, "LOCAL_RANK", at_least=0) if "LOCAL_RANK" in environ else rank,
        address=environ["MASTER_ADDR"],
        port=port,
        by_torchrun="TORCHELASTIC_RUN_ID" in environ,
        has_agent=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


class AlreadyTold(PrenormError):
    """An error that all processes of a run met, in one that is not the first: rank 0 shows it. Its cause has it."""


@contextmanager
def told_once(launch: Launch) -> Iterator[None]:
    """For errors of settings: torchrun's processes have one command line, so rank 0 shows the error of all."""
    try:
        yield
    except ConfigError as error:
        if launch.by_torchrun and launch.rank:
            raise AlreadyTold(str(error)) from error
        raise


def _number(environ: Mapping[str, str], name: str, *, at_least: int) -> int:
    try:
        number = int(environ[name])
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise ConfigError(f"{name} must be an integer of at least {at_least}, not {environ[name]!r}.")
    return number
