"""`prenorm cost MODEL --gpus N`: what a training step costs on many devices, and the layout that it is fastest with."""

import json
from dataclasses import replace
from typing import Any

from ..costs.cluster.hardware import Cluster, find_cluster
from ..costs.cluster.plan import Plan
from ..costs.cluster.proposal import Candidate, Choices, best_plan, propose
from ..costs.cluster.published_runs import published_runs
from ..costs.cluster.spread_sheet import proposal_sheet, runs_sheet, spread_sheet
from ..costs.devices import DEVICES
from ..costs.fits import parse_bytes
from ..costs.sheet import check_context, check_utilisation
from ..distributed.layout import Layout
from ..errors import ConfigError
from ..validation import check_number, check_size
from .cost_flags import CostFlags
from .named_model import NamedModel, find_model
from .spread_tables import show_runs, show_spread

DEVICE = "h100-sxm"
CONTEXT = 8192  # or the model's max_seq_len, where that is smaller
MOST_GPUS = 2**20
AXES = ("dp", "fsdp", "tp", "pp")
ONLY_SPREAD = (
    *AXES,
    *("pp_stages", "micro_batch_size", "checkpoint_activations_every"),
    *("product_flops", "memory", "node", "node_link", "network_link"),
)


def run(flags: CostFlags) -> int:
    """Print the sheet of the layout that is given, or of the fastest; the exit code is 1 if it does not fit."""
    if flags.fits is not None:
        raise ConfigError("--fits is for one device; with --gpus, --memory says what a device has, such as 80GB.")
    check_size("gpus", flags.gpus)
    assert flags.gpus is not None
    if flags.gpus > MOST_GPUS:
        raise ConfigError(f"gpus must be at most {MOST_GPUS:,}, not {flags.gpus:,}.")
    if flags.utilisation is not None:
        check_utilisation(flags.utilisation)
    if flags.tokens is not None:
        check_size("tokens", flags.tokens)
    named, cluster = find_model(flags.model), _cluster(flags)
    plan, choices = _plan(flags, named), _choices(flags)
    layout = _layout(flags)
    given = layout and _with_layout(layout, flags.gpus, named, plan, cluster, choices)
    candidates = propose(named.config, plan, flags.gpus, cluster, choices)
    chosen = given or candidates[0]
    if chosen.plan is None:
        raise ConfigError(f"no layout of {flags.gpus} devices can work: {chosen.layout}: {chosen.reason}.")
    figures: dict[str, Any] = {"tokens": flags.tokens, "utilisation": flags.utilisation, "watts": _watts(flags)}
    sheet = {
        "model": flags.model,
        "source": named.source,
        **spread_sheet(chosen.plan, cluster, **figures),
        "proposal": proposal_sheet(candidates, flags.utilisation),
    }
    if flags.json:
        print(json.dumps(sheet, indent=2))
    else:
        show_spread(sheet)
    return 0 if chosen.fits else 1


def run_published(flags: CostFlags) -> int:
    """Print the published runs beside what is predicted of them."""
    if flags.model:
        raise ConfigError(f"--published-runs has models of its own, and takes no MODEL, such as {flags.model!r}.")
    sheet = runs_sheet(published_runs())
    if flags.json:
        print(json.dumps(sheet, indent=2))
    else:
        show_runs(sheet)
    return 0


def _plan(flags: CostFlags, named: NamedModel) -> Plan:
    """The step, on one device: a layout replaces it."""
    model, batch = named.architecture, flags.gpus if flags.batch is None else flags.batch
    assert batch is not None
    context = min(CONTEXT, model.max_seq_len) if flags.context is None else flags.context
    check_context(context, model)
    if parts := (*model.uncounted, *model.one_device):
        raise ConfigError(
            f"nobody has counted what several devices save for what this model's family has: {', '.join(parts)} "
            "(fields of ModelConfig.family); without --gpus the costs on one device are shown."
        )
    return Plan(
        model=model,
        layout=Layout(),
        batch=batch,
        micro_batch=1,
        context=context,
        dtype=flags.dtype,
        every=1,
        optimizer=flags.optimizer,
    )


def _choices(flags: CostFlags) -> Choices:
    if flags.checkpoint_activations_every is not None:
        check_size("checkpoint_activations_every", flags.checkpoint_activations_every, at_least=0)
    for name in ("micro_batch_size", "pp_stages"):
        if getattr(flags, name) is not None:
            check_size(name, getattr(flags, name))
    return Choices(
        micro_batch=flags.micro_batch_size,
        every=flags.checkpoint_activations_every,
        pp_stages=flags.pp_stages,
    )


def _layout(flags: CostFlags) -> Layout | None:
    """The layout that the flags give, completed as by `prenorm train`: dp is what the other axes leave."""
    given = {axis: size for axis in AXES if (size := getattr(flags, axis)) is not None}
    if not given:
        return None
    layout = Layout(**given)
    if flags.dp is None and flags.gpus:
        return replace(layout, dp=max(1, flags.gpus // layout.world_size))
    return layout


def _with_layout(
    layout: Layout, devices: int, named: NamedModel, plan: Plan, cluster: Cluster, choices: Choices
) -> Candidate:
    """The fastest plan with this layout. Raises ConfigError with the nearest layout that works if it cannot."""
    layout.check(
        named.config,
        world_size=devices,
        batch_size=plan.batch,
        micro_batch_size=choices.micro_batch or 1,
        context=plan.context,
    )
    found = best_plan(named.config, plan, layout, cluster, choices)
    if found.plan is None:
        raise ConfigError(f"the layout {layout} cannot work: {found.reason}.")
    return found


def _cluster(flags: CostFlags) -> Cluster:
    if flags.dtype != "bfloat16" and (flags.flops is None or flags.product_flops is None):
        raise ConfigError(
            f"the rates of devices are those of bfloat16; with --dtype {flags.dtype}, give --flops and --product-flops."
        )
    return find_cluster(
        flags.device or DEVICE,
        peak_flops=flags.flops,
        product_flops=flags.product_flops,
        memory=None if flags.memory is None else parse_bytes(flags.memory),
        memory_bytes_per_second=flags.bandwidth,
        node=flags.node,
        node_bytes_per_second=flags.node_link,
        network_bytes_per_second=flags.network_link,
    )


def _watts(flags: CostFlags) -> float | None:
    if flags.watts is not None:
        check_number("watts", flags.watts, at_least=1.0)
        return float(flags.watts)
    watts = DEVICES[(flags.device or DEVICE).lower()].watts
    return None if watts is None else float(watts)
