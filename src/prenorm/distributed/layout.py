"""The layout of processes: how many ways each axis of parallelism splits a run, and which layouts a model can have."""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import accumulate

from ..config import ModelConfig
from ..errors import ConfigError
from ..validation import check_size

MOST_PROCESSES = 2**13  # a layout is suggested for no more than that: all of them are tried


@dataclass(frozen=True, slots=True)
class Layout:
    """How many ways each axis splits; the product is the number of processes. Raises ConfigError for invalid sizes."""

    dp: int = 1
    """Copies of the model, each with rows of its own."""

    fsdp: int = 1
    """Ranks with rows of their own that also shard parameters, gradients and optimiser state among them (FSDP2)."""

    tp: int = 1
    """Ranks that split the matrices of each layer, and the sequence between them."""

    pp: int = 1
    """Stages of consecutive layers."""

    def __post_init__(self) -> None:
        for name in ("dp", "fsdp", "tp", "pp"):
            check_size(name, getattr(self, name))

    @property
    def world_size(self) -> int:
        """How many processes it takes."""
        return self.dp * self.fsdp * self.tp * self.pp

    @property
    def data_ranks(self) -> int:
        """How many ways the rows of a batch are split."""
        return self.dp * self.fsdp

    def check(
        self, config: ModelConfig, *, world_size: int, batch_size: int, micro_batch_size: int = 0, context: int
    ) -> None:
        """Raise ConfigError unless this many processes can train such a model in this layout.

        batch_size: rows in an optimiser step, over all processes. micro_batch_size: rows in one forward pass of a
        process; 0 for all of its rows. context: tokens in a row. The message has every reason, and the nearest layout
        that works.
        """
        for name, size in (("world_size", world_size), ("batch_size", batch_size), ("context", context)):
            check_size(name, size)
        check_size("micro_batch_size", micro_batch_size, at_least=0)
        reasons = list(_reasons(self, config, world_size, batch_size, micro_batch_size, context))
        if reasons:
            nearest = _nearest(self, config, world_size, batch_size, micro_batch_size, context)
            raise ConfigError(f"the layout {self} cannot work: {'; '.join(reasons)}. {nearest}")

    def reasons(self, config: ModelConfig, *, batch_size: int, micro_batch_size: int = 0, context: int) -> list[str]:
        """Why as many processes as it takes cannot train such a model in it; empty if they can."""
        return list(_reasons(self, config, self.world_size, batch_size, micro_batch_size, context))

    def __str__(self) -> str:
        return f"--dp {self.dp} --fsdp {self.fsdp} --tp {self.tp} --pp {self.pp}"


def _reasons(
    layout: Layout, config: ModelConfig, world_size: int, batch_size: int, micro_batch_size: int, context: int
) -> Iterator[str]:
    """Why this layout cannot work, in words."""
    if layout.world_size != world_size:
        yield (
            f"dp x fsdp x tp x pp must be the number of processes, but {layout.dp} x {layout.fsdp} x {layout.tp} x "
            f"{layout.pp} = {layout.world_size}, and there are {world_size}"
        )
    if batch_size % layout.data_ranks:
        yield f"dp x fsdp must divide batch_size, but {layout.data_ranks} does not divide {batch_size}"
    if layout.tp > 1:
        yield from _reasons_against_tensor_parallel(layout, config, context)
    if layout.pp > 1:
        yield from _reasons_against_pipeline(layout, config, batch_size, micro_batch_size)


def _reasons_against_tensor_parallel(layout: Layout, config: ModelConfig, context: int) -> Iterator[str]:
    tp, kv_heads, family = layout.tp, config.num_kv_heads, config.family
    if config.num_heads % tp:
        yield f"tp must divide num_heads, but {tp} does not divide {config.num_heads}"
    elif kv_heads % tp and tp % kv_heads:  # fewer of them than ranks are replicated
        yield f"tp must divide num_kv_heads or be a multiple of it, but tp is {tp} and num_kv_heads {kv_heads}"
    if config.d_ff % tp:
        yield f"tp must divide d_ff, but {tp} does not divide {config.d_ff}"
    if context < tp:
        yield f"tp must be at most context, because the sequence is split, too, but it is {tp} and context {context}"
    if not has_part_for_each(config.vocab_size, tp):
        yield f"every rank must have some of the tokens, but tp is {tp} and vocab_size {config.vocab_size}"
    elif config.vocab_size % tp and config.d_model % layout.fsdp:
        yield (
            f"tp must divide vocab_size, or fsdp d_model, but tp is {tp} and vocab_size {config.vocab_size}, fsdp "
            f"{layout.fsdp} and d_model {config.d_model}"
        )
    if family is not None and config.qk_norm and (family.wide_qk_norm or family.per_head_qk_norm):
        name = "wide_qk_norm" if family.wide_qk_norm else "per_head_qk_norm"
        yield f"tp must be 1 for a family with {name}, whose norm of queries and keys is not the same for each head"


def _reasons_against_pipeline(
    layout: Layout, config: ModelConfig, batch_size: int, micro_batch_size: int
) -> Iterator[str]:
    if config.num_layers < layout.pp:
        yield f"pp must be at most num_layers, but it is {layout.pp} and num_layers {config.num_layers}"
    if batch_size % layout.data_ranks:
        return
    rows = batch_size // layout.data_ranks
    micro = micro_batch_size or rows
    if rows % micro:
        yield (
            f"with pp, micro_batch_size must divide the {rows} rows of a process (batch_size / (dp x fsdp)), but "
            f"{micro} does not"
        )
    elif rows // micro < layout.pp:
        yield (
            f"pp must be at most the number of micro-batches, but it is {layout.pp}, and {rows} rows of a process in "
            f"micro-batches of {micro} are {rows // micro}"
        )


def _nearest(
    layout: Layout, config: ModelConfig, world_size: int, batch_size: int, micro_batch_size: int, context: int
) -> str:
    """The way out: the layout closest to this one that works, for as many processes or as few less as it takes."""
    for processes in range(min(world_size, MOST_PROCESSES), 0, -1):
        working = [
            other
            for other in layouts(processes)
            if not any(_reasons(other, config, processes, batch_size, micro_batch_size, context))
        ]
        if working:
            best = min(working, key=lambda other: (_distance(layout, other), astuple(other)))
            some = "" if processes == world_size else f", on {processes} of the {world_size} processes"
            return f"The nearest layout that works is {best}{some}."
    raise AssertionError("one process can train any model")


def has_part_for_each(size: int, ranks: int) -> bool:
    """Whether each rank has some of so many, in chunks of ceil(size / ranks)."""
    return -(-size // ranks) * (ranks - 1) < size


def layouts(world_size: int) -> Iterator[Layout]:
    """Every layout of this many processes."""
    for pp in _divisors(world_size):
        for tp in _divisors(world_size // pp):
            for fsdp in _divisors(world_size // pp // tp):
                yield Layout(dp=world_size // pp // tp // fsdp, fsdp=fsdp, tp=tp, pp=pp)


def stage_layers(num_layers: int, stages: int) -> list[range]:
    """The layers of each stage, as evenly as can be: those with one more come last, but for the stage with the head.

    Early stages keep the activations of more micro-batches, and the head is work of its own.
    Raises ConfigError where there are fewer layers than stages.
    """
    if stages > num_layers:
        raise ConfigError(
            f"every stage must have a layer, but there are {stages} stages and num_layers is {num_layers}; use fewer "
            "stages (pp times the stages of a rank)."
        )
    least, more = divmod(num_layers, stages)
    sizes = [least + (stages - 1 - more <= number < stages - 1) for number in range(stages)]
    ends = list(accumulate(sizes))
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def _distance(one: Layout, other: Layout) -> float:
    """How far apart two layouts are: the sum over the axes of the number of doublings between their sizes."""
    pairs = zip(astuple(one), astuple(other), strict=True)
    return round(sum(abs(math.log2(a / b)) for a, b in pairs), 6)
