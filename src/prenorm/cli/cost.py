"""`prenorm cost MODEL`: what a model costs, in parameters, operations, bytes, time and energy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ..costs.devices import DEVICES, Device
from ..costs.fits import parse_bytes
from ..costs.named import find_model
from ..costs.sheet import cost_sheet
from ..errors import ConfigError
from ..validation import check_number

CONTEXT = 2048  # or the model's max_seq_len, where that is smaller
PARTS = ("projections", "scores", "weighted_values", "feed_forward", "head")
PASSES = ("forward", "backward", "recomputation", "decoded_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class CostFlags:
    """Say what a model costs: parameters, operations, bytes, and on given hardware time and energy.

    MODEL is a run's folder, a folder in Hugging Face's layout, or the name of a published model, such as llama-3-8b.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder with config.json (or a run's config.toml), or a name: a wrong one lists them all."""

    context: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens in a row. Without it, 2,048, or the model's longest where that is shorter."""

    batch: int = 1
    """Rows."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of products in training, where weights stay in float32, and of weights, keys and values in decoding."""

    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Hardware by name, with its published figures, for time and energy: a wrong one lists them all."""

    flops: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Operations a second of the hardware, such as 989e12, instead of the device's."""

    bandwidth: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Bytes a second of its memory, such as 3.35e12, instead of the device's."""

    watts: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Watts that it draws, instead of the device's."""

    utilisation: float = 1.0
    """The share of these rates that is reached; 1 is the limit, which no run reaches."""

    tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens to train on. Without it, 20 a parameter (Hoffmann et al. 2022)."""

    fits: Annotated[str | None, tyro.conf.arg(metavar="BYTES")] = None
    """A memory, such as 24GB or 80GiB: adds the largest batch and context that fit."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON document and nothing else: docs/what-does-a-model-cost.md explains its keys."""


def parse(argv: list[str]) -> CostFlags:
    """The flags in a command line. Exits with a message when they are none."""
    return tyro.cli(CostFlags, prog="prenorm cost", args=argv)


def run(flags: CostFlags) -> int:
    """Print the costs. Gives the exit code."""
    device = _device(flags)
    memory = None if flags.fits is None else parse_bytes(flags.fits)
    named = find_model(flags.model)
    sheet = {"model": flags.model, "source": named.source} | cost_sheet(
        named.model,
        batch=flags.batch,
        context=min(CONTEXT, named.model.max_seq_len) if flags.context is None else flags.context,
        dtype=flags.dtype,
        device=device,
        tokens=flags.tokens,
        utilisation=flags.utilisation,
        memory=memory,
    )
    if flags.json:
        print(json.dumps(sheet, indent=2))
    else:
        _show(sheet)
    return 0


def _device(flags: CostFlags) -> Device | None:
    """The hardware that the flags name or describe; None where they do neither. Raises ConfigError."""
    given = {"flops": flags.flops, "bandwidth": flags.bandwidth, "watts": flags.watts}
    for name, value in given.items():
        if value is not None:
            check_number(name, value, above=0.0)
    if flags.device is None:
        if all(value is None for value in given.values()):
            return None
        return Device(flags.flops, flags.bandwidth, flags.watts, "given")
    if flags.device.lower() not in DEVICES:
        raise ConfigError(
            f"device must be one of {', '.join(DEVICES)}, not {flags.device!r}; "
            "--flops, --bandwidth and --watts describe any other."
        )
    known = DEVICES[flags.device.lower()]
    source = known.source if all(value is None for value in given.values()) else f"{known.source}, and given"
    return Device(
        flags.flops or known.flops_per_second,
        flags.bandwidth or known.bytes_per_second,
        flags.watts or known.watts,
        source,
    )


def _show(sheet: dict[str, Any]) -> None:
    """The sheet as tables."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    settings = sheet["settings"]
    console.print(
        f"{sheet['model']}, {settings['batch']:,} x {settings['context']:,} tokens, {settings['dtype']}.\n"
        f"Sizes from {sheet['source']}.",
        markup=False,
    )
    shown = {name: f"{count:,}" for name, count in sheet["parameters"].items() if count}
    _table(console, "Parameters", (), list(shown.items()))
    for name, title in (("full_square", "every query with every key"), ("causal", "with the keys that it sees")):
        passes = sheet["flops"][name]
        rows = [(part, *(_scaled(passes[one][part]) for one in PASSES)) for part in (*PARTS, "total")]
        _table(console, f"FLOPs, {title}", ("", *PASSES), rows)
    rules = {name: _scaled(sheet["flops"][f"training_step_{name}"]) for name in ("6n", "6n_and_attention")}
    _table(console, "FLOPs of a training step by rule", (), list(rules.items()))
    decoding = {"keys and values": sheet["kv_cache_bytes"], "in all": sheet["decoding_bytes"]}
    _table(console, "Decoding, bytes", (), [(name, _scaled(size)) for name, size in decoding.items()])
    columns = ("", "plain", "checkpointed")
    rows = [
        (f"saved for backward, {kernels}", _scaled(one["plain"]["total"]), _scaled(one["checkpointed"]["total"]))
        for kernels, one in sheet["saved_bytes"].items()
        if one
    ]
    for optimizer, one in sheet["peak_bytes"].items():
        rows.append((f"state of {optimizer}", *2 * (_scaled(sheet["optimizer_bytes"][optimizer]),)))
        rows.append((f"peak of a step with {optimizer}", _scaled(one["plain"]), _scaled(one["checkpointed"])))
    _table(console, "Training, bytes", columns, rows)
    if sheet["hardware"]:
        _show_hardware(console, sheet["hardware"])
    if sheet["fits"]:
        _show_fits(console, sheet["fits"], settings)


def _show_hardware(console: Any, hardware: dict[str, Any]) -> None:
    console.print(f"Hardware: {hardware['source']}, at {hardware['utilisation']:.0%} of its rates.", markup=False)
    rows = []
    for name in ("plain", "checkpointed"):
        one = hardware[f"training_{name}"]
        rows.append((f"training step, {name}, seconds", _figure(one["step_seconds"])))
        days = None if one["seconds"] is None else one["seconds"] / 86400
        rows.append((f"{hardware['training_tokens']:,} tokens, {name}, device days", _figure(days)))
        rows.append((f"{hardware['training_tokens']:,} tokens, {name}, kWh", _figure(one["kilowatt_hours"])))
    rows.append(("decoded token, seconds", _figure(hardware["decoded_token"]["seconds"])))
    rows.append(("decoded token, joules", _figure(hardware["decoded_token"]["joules"])))
    _table(console, "Time and energy", (), rows)


def _show_fits(console: Any, fits: dict[str, Any], settings: dict[str, Any]) -> None:
    rows = [
        (f"training, {optimizer}, {name}", f"{one['batch']:,}", f"{one['context']:,}")
        for optimizer, modes in fits["training"].items()
        for name, one in modes.items()
    ]
    rows.append(("decoding", f"{fits['decoding']['batch']:,}", f"{fits['decoding']['context']:,}"))
    title = f"What fits into {_scaled(fits['bytes'])}B"
    title += f": rows of {settings['context']:,} tokens, and tokens in a row of a batch of {settings['batch']:,}"
    _table(console, title, ("", "rows", "tokens"), rows)


def _table(console: Any, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=bool(columns), box=box.SIMPLE)
    for number in range(len(rows[0])):
        header = columns[number].replace("_", " ") if columns else ""
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for first, *others in rows:
        table.add_row(first.replace("_", " "), *others)
    console.print(table)


def _scaled(number: int) -> str:
    """Four digits and a prefix: 14.97 T."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:,.2f} {prefix}"
    return f"{number} "


def _figure(number: float | None) -> str:
    return "not known" if number is None else f"{number:,.4g}"
