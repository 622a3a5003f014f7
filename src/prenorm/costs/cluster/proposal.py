"""The layout that a step is fastest with on given devices, and what is wrong with each of the others."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...config import ModelConfig
from ...distributed.layout import Layout, layouts
from ...errors import ConfigError
from .hardware import Cluster
from .plan import Plan
from .rank_memory import rank_bytes
from .step_time import Seconds, step_seconds

MOST_ROWS = 32  # of a micro-batch that is tried
PP_STAGES = (1, 2, 4, 8)
USABLE = 0.92  # of a device's memory: the rest is the driver's, the collectives', and an allocator's gaps


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What a proposal may choose besides the layout: None leaves it free."""

    micro_batch: int | None = None
    every: int | None = None
    pp_stages: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """The fastest plan with a layout: if it does not fit, the smallest one; if the layout cannot work, none."""

    layout: Layout
    plan: Plan | None = None
    seconds: Seconds | None = None
    bytes: int = 0
    fits: bool = False
    reason: str = ""
    """What is wrong with the layout; "" for the best."""


def propose(config: ModelConfig, plan: Plan, devices: int, cluster: Cluster, choices: Choices) -> list[Candidate]:
    """The fastest plan with each layout of so many devices: the best first, those that cannot be last.

    plan: the step, on one device.
    """
    found = [best_plan(config, plan, layout, cluster, choices) for layout in layouts(devices)]
    found.sort(key=lambda one: (not one.fits, one.seconds is None, one.seconds["total"] if one.seconds else 0.0))
    best = found[0]
    return [_compared(one, best) if one.fits and one is not best else one for one in found]


def best_plan(config: ModelConfig, plan: Plan, layout: Layout, cluster: Cluster, choices: Choices) -> Candidate:
    """The fastest plan with this layout of those that fit into the cluster's memory, or else the smallest."""
    reason, usable = "", int(cluster.memory * USABLE)
    best: Candidate | None = None
    for micro_batch, every, pp_stages in _variants(plan, layout, choices):
        against = layout.reasons(config, batch_size=plan.batch, micro_batch_size=micro_batch, context=plan.context)
        if layout.tp > cluster.node:
            against.append(f"tp must be at most a node's {cluster.node} devices, but it is {layout.tp}")
        if against:
            reason = reason or "; ".join(against)
            continue
        try:
            one = replace(plan, layout=layout, micro_batch=micro_batch, every=every, pp_stages=pp_stages)
        except ConfigError as error:
            reason = reason or str(error).rstrip(".")
            continue
        needed = rank_bytes(one)["total"]
        if best is not None and (best.fits or needed >= best.bytes) and needed > usable:
            continue
        seconds = step_seconds(one, cluster)
        fits = needed <= usable
        if best is None or (not best.fits) or (best.seconds and seconds["total"] < best.seconds["total"]):
            best = Candidate(layout=layout, plan=one, seconds=seconds, bytes=needed, fits=fits)
    if best is None:
        return Candidate(layout=layout, reason=reason)
    if best.fits:
        return best
    return replace(best, reason=f"needs {best.bytes / 1e9:,.1f} GB a device, and {usable / 1e9:,.1f} GB are usable")


def _variants(plan: Plan, layout: Layout, choices: Choices) -> Iterator[tuple[int, int, int]]:
    """Every way to cut a data rank's rows, to checkpoint blocks, and to interleave stages."""
    rows = max(1, plan.batch // layout.data_ranks)
    sizes = [size for size in range(1, min(rows, MOST_ROWS) + 1) if rows % size == 0]
    most = plan.model.num_layers // layout.pp
    stages = [count for count in PP_STAGES if count == 1 or (layout.pp > 1 and count <= most)]
    for micro_batch in [choices.micro_batch] if choices.micro_batch else sizes:
        for every in (0, 1) if choices.every is None else (choices.every,):
            for pp_stages in [choices.pp_stages] if choices.pp_stages else stages:
                yield micro_batch, every, pp_stages


def _compared(one: Candidate, best: Candidate) -> Candidate:
    """With the reason why it is slower than the best: what it spends more on."""
    assert one.seconds is not None
    assert best.seconds is not None
    more = {name: one.seconds[name] - best.seconds[name] for name in one.seconds if name != "total"}
    worst = max(more, key=lambda name: more[name])
    total = best.seconds["total"]
    slower, worst_share = one.seconds["total"] / total - 1, more[worst] / total
    return replace(one, reason=f"{slower:.1%} slower: {worst_share:.1%} for {worst.replace('_', ' ')}")
