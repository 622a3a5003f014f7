"""The sheet of a step on many devices: every figure by name, as printed by `prenorm cost --gpus N --json`.

docs/how-do-i-lay-out-a-large-model.md explains each.
"""

from dataclasses import asdict
from typing import Any

from ...distributed.layout import Layout
from ..parameters import total
from ..sheet import TOKENS_PER_PARAMETER
from .collectives import collectives_of_a_step
from .hardware import Cluster
from .plan import Plan
from .proposal import USABLE, Candidate
from .published_runs import PublishedRun
from .rank_memory import rank_bytes
from .stages import Stages, all_stages
from .step_time import model_flops_utilisation, step_seconds

REACHED = 0.71  # of the rates in hardware.py: the median over the published runs, which a test works out again


def spread_sheet(
    plan: Plan, cluster: Cluster, *, tokens: int | None = None, utilisation: float | None = None, watts: float | None
) -> dict[str, Any]:
    """What a step with this plan needs: bytes of a device, bytes over each link, seconds, and the rates they come to.

    tokens: to train on; default: 20 a parameter. utilisation: the share of the hardware's rates that a step reaches.
    """
    utilisation = REACHED if utilisation is None else utilisation
    seconds = {name: one / utilisation for name, one in step_seconds(plan, cluster).items()}
    memory = rank_bytes(plan)
    rows, devices = plan.batch * plan.context, plan.layout.world_size
    tokens = TOKENS_PER_PARAMETER * total(plan.model) if tokens is None else tokens
    whole = tokens / rows * seconds["total"]
    return {
        "settings": {
            "devices": devices,
            "batch": plan.batch,
            "context": plan.context,
            "micro_batch_size": plan.micro_batch,
            "micro_batches": plan.micro_batches,
            "dtype": plan.dtype,
            "optimizer": plan.optimizer,
            "checkpoint_activations_every": plan.every,
            "utilisation": utilisation,
        },
        "layout": _layout(plan.layout, plan.pp_stages),
        "memory_bytes": memory,
        "usable_bytes": int(cluster.memory * USABLE),
        "fits": memory["total"] <= cluster.memory * USABLE,
        "links": links(plan, cluster),
        "bubble": plan.bubble,
        "step_seconds": seconds,
        "tokens_per_second": rows / seconds["total"],
        "tokens_per_second_per_device": rows / seconds["total"] / devices,
        **model_flops_utilisation(plan, cluster, seconds["total"]),
        "training": {
            "tokens": tokens,
            "seconds": whole,
            "kilowatt_hours": whole * devices * watts / 3.6e6 if watts else None,
        },
        "hardware": asdict(cluster),
    }


def links(plan: Plan, cluster: Cluster) -> list[dict[str, Any]]:
    """What the busiest device sends in a step, by axis, and over which link."""
    return max((_links(stages, cluster) for stages in all_stages(plan)), key=lambda axes: sum(x["bytes"] for x in axes))


def _links(stages: Stages, cluster: Cluster) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in collectives_of_a_step(stages):
        entry = found.setdefault(
            one.axis,
            {
                "axis": one.axis,
                "devices": one.size,
                "link": "node" if one.size * one.stride <= cluster.node else "network",
                "collectives": 0,
                "bytes": 0,
                "seconds": 0.0,
            },
        )
        entry["collectives"] += one.count
        entry["bytes"] += round(one.count * one.sent)
        entry["seconds"] += one.count * cluster.collective_seconds(one.size, one.stride, one.sent, one.hops)
    return list(found.values())


def proposal_sheet(candidates: list[Candidate], utilisation: float | None) -> list[dict[str, Any]]:
    """The layouts of a proposal, the best first, each with its step and with what is wrong with it."""
    utilisation = REACHED if utilisation is None else utilisation
    return [
        {
            "layout": _layout(one.layout, one.plan.pp_stages if one.plan else 1),
            "micro_batch_size": one.plan.micro_batch if one.plan else None,
            "checkpoint_activations_every": one.plan.every if one.plan else None,
            "memory_bytes": one.bytes if one.plan else None,
            "step_seconds": one.seconds["total"] / utilisation if one.seconds else None,
            "fits": one.fits,
            "reason": one.reason,
        }
        for one in candidates
    ]


def runs_sheet(runs: list[PublishedRun]) -> list[dict[str, Any]]:
    """Published step times beside the predicted ones: at the rates of the hardware, and with REACHED of them."""
    found = []
    for run in runs:
        seconds = step_seconds(run.plan, run.cluster)["total"]
        found.append(
            {
                "name": run.name,
                "hardware": run.cluster.name,
                "layout": _layout(run.plan.layout, run.plan.pp_stages),
                "batch": run.plan.batch,
                "micro_batch_size": run.plan.micro_batch,
                "context": run.plan.context,
                "checkpoint_activations_every": run.plan.every,
                "published": run.published,
                "published_seconds": run.seconds,
                "seconds_at_full_rates": seconds,
                "predicted_seconds": seconds / REACHED,
                "error": seconds / REACHED / run.seconds - 1,
                "source": run.source,
                "note": run.note,
            }
        )
    return found


def _layout(layout: Layout, pp_stages: int) -> dict[str, int]:
    return {**asdict(layout), "pp_stages": pp_stages}
