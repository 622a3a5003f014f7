"""`prenorm cost MODEL`: what a model costs, in parameters, operations, bytes, time and energy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ..costs.devices import DEVICES, Device
from ..costs.fits import parse_bytes
from ..costs.sheet import cost_sheet
from ..errors import ConfigError
from ..validation import check_number, did_you_mean
from .flags import flags_from
from .named_model import find_model

CONTEXT = 2048  # or the model's max_seq_len, where that is smaller
PARTS = ("projections", "scores", "weighted_values", "feed_forward", "head")
PASSES = ("forward", "backward", "recomputation", "decoded_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class CostFlags:
    """Compute what a model costs: parameters, operations, bytes, and time and energy on given hardware.

    MODEL is a run's folder, a folder in Hugging Face's layout, or the name of a published model, such as llama-3-8b.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder with config.json (or a run's config.toml), or a model name; an unknown name lists all of them."""

    context: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens per row. Default: 2,048, or the model's max_seq_len if that is smaller."""

    batch: int = 1
    """Rows."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of matrix products in training (weights stay float32), and of weights, keys and values in decoding."""

    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Hardware by name, such as h100-sxm, whose published figures give time and energy; an unknown name lists all."""

    flops: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Operations per second of the hardware in this dtype, such as 989e12, instead of the device's."""

    bandwidth: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Bytes per second of its memory, such as 3.35e12, instead of the device's."""

    watts: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Power draw in watts, instead of the device's."""

    utilisation: float = 1.0
    """The fraction of these rates that is reached; 1 is the limit, which no run reaches."""

    tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Number of training tokens. Default: 20 per parameter (Hoffmann et al. 2022)."""

    fits: Annotated[str | None, tyro.conf.arg(metavar="BYTES")] = None
    """A memory size, such as 24GB, 80GiB or a number of bytes: adds the largest batch and context that fit."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON document and nothing else; docs/what-does-a-model-cost.md explains its keys."""


def parse(argv: list[str]) -> CostFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: CostFlags = flags_from(CostFlags, argv, prog="prenorm cost")
    return flags


def run(flags: CostFlags) -> int:
    """Print the costs, and return the exit code."""
    device = _device(flags)
    memory = None if flags.fits is None else parse_bytes(flags.fits)
    named = find_model(flags.model)
    sheet = {"model": flags.model, "source": named.source} | cost_sheet(
        named.architecture,
        batch=flags.batch,
        context=min(CONTEXT, named.architecture.max_seq_len) if flags.context is None else flags.context,
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
    """The hardware that the flags name or describe, None if neither. Raises ConfigError."""
    for name in ("flops", "bandwidth", "watts"):
        if getattr(flags, name) is not None:
            check_number(name, getattr(flags, name), at_least=1.0)
    given = Device(flags.flops, flags.bandwidth, flags.watts, "the flags")
    if flags.device is None:
        return None if given[:3] == (None, None, None) else given
    known = DEVICES.get(flags.device.lower())
    if known is None:
        raise ConfigError(
            f"device must be one of {', '.join(DEVICES)}, not {flags.device!r}.{did_you_mean(flags.device, DEVICES)} "
            "--flops, --bandwidth and --watts describe any other."
        )
    if flags.dtype != "bfloat16":
        known = known._replace(flops_per_second=None)  # the published rate is for bfloat16
    figures = {name: figure for name, figure in given._asdict().items() if figure is not None and name != "source"}
    return known._replace(**figures, source=f"{known.source}, and the flags" if figures else known.source)


def _show(sheet: dict[str, Any]) -> None:
    """The sheet as tables."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    settings = sheet["settings"]
    console.print(
        f"{sheet['model']}: {settings['batch']:,} x {settings['context']:,} tokens, {settings['dtype']}.\n"
        f"Sizes from {sheet['source']}.\n",
        markup=False,
    )
    parameters = {name: f"{count:,}" for name, count in sheet["parameters"].items() if count}
    _table(console, "Parameters", (), list(parameters.items()))
    _show_flops(console, sheet["flops"], settings["batch"])
    rows = [
        ("keys and values", _scaled(sheet["kv_cache_bytes"])),
        ("with weights and logits", _scaled(sheet["decoding_bytes"])),
    ]
    _table(console, "Bytes for decoding", (), rows)
    _show_training_bytes(console, sheet)
    if sheet["hardware"]:
        _show_hardware(console, sheet["hardware"], settings["batch"])
    if sheet["fits"]:
        _show_fits(console, sheet["fits"], settings)


def _show_flops(console: Any, flops: dict[str, Any], batch: int) -> None:
    columns = ("", "forward", "backward", "recomputation", _decoded(batch))
    rules = {"full_square": "every query with every key", "causal": "each query with the keys that it sees"}
    for name, title in rules.items():
        rows = [(part, *(_scaled(flops[name][one][part]) for one in PASSES)) for part in (*PARTS, "total")]
        _table(console, f"FLOPs, {title}", columns, rows)
    rows = [
        (title, _scaled(flops[name]["forward"]["total"] + flops[name]["backward"]["total"]))
        for name, title in rules.items()
    ]
    rows += [
        ("the 6N rule", _scaled(flops["training_step_6n"])),
        ("6N + attention", _scaled(flops["training_step_6n_and_attention"])),
    ]
    _table(console, "FLOPs of a training step", (), rows)


def _show_training_bytes(console: Any, sheet: dict[str, Any]) -> None:
    rows = [
        (f"saved for backward, {kernels}", _scaled(one["plain"]["total"]), _scaled(one["checkpointed"]["total"]))
        for kernels, one in sheet["saved_bytes"].items()
        if one
    ]
    for optimizer, size in sheet["optimizer_bytes"].items():
        rows.append((f"state of {optimizer}", _scaled(size), _scaled(size)))
        if sheet["peak_bytes"]:
            one = sheet["peak_bytes"][optimizer]
            rows.append((f"peak of a step with {optimizer}", _scaled(one["plain"]), _scaled(one["checkpointed"])))
    _table(console, "Bytes for training", ("", "plain", "checkpointed"), rows)
    if sheet["not_counted"]:
        console.print(
            "What training saves for its backward pass, and so the peak of a step, is not counted for what this "
            f"model's family has: {', '.join(sheet['not_counted'])} (fields of ModelConfig.family).\n",
            markup=False,
        )


def _show_hardware(console: Any, hardware: dict[str, Any], batch: int) -> None:
    rates = [
        f"{_figure(rate, scale)} {unit}"
        for name, scale, unit in (
            ("flops_per_second", 1e12, "TFLOP/s"),
            ("bytes_per_second", 1e12, "TB/s"),
            ("watts", 1.0, "W"),
        )
        if (rate := hardware[name]) is not None
    ]
    console.print(
        f"Hardware: {hardware['utilisation']:.3g} of {', '.join(rates)} ({hardware['source']}).\n",
        markup=False,
    )
    rows = []
    for name in ("plain", "checkpointed"):
        one, tokens = hardware[f"training_{name}"], hardware["training_tokens"]
        rows.append((f"training step, {name}, seconds", _figure(one["step_seconds"])))
        rows.append((f"{tokens:,} tokens, {name}, days", _figure(one["seconds"], 86400.0)))
        rows.append((f"{tokens:,} tokens, {name}, kWh", _figure(one["kilowatt_hours"])))
    rows += [(f"{_decoded(batch)}, {unit}", _figure(hardware["decoded_token"][unit])) for unit in ("seconds", "joules")]
    _table(console, "Time and energy on one device", (), rows)


def _show_fits(console: Any, fits: dict[str, Any], settings: dict[str, Any]) -> None:
    rows = [
        (f"training, {optimizer}, {name}", f"{one['batch']:,}", f"{one['context']:,}")
        for optimizer, modes in (fits["training"] or {}).items()
        for name, one in modes.items()
    ]
    rows.append(("decoding", f"{fits['decoding']['batch']:,}", f"{fits['decoding']['context']:,}"))
    columns = ("", f"batch at context {settings['context']:,}", f"context at batch {settings['batch']:,}")
    _table(console, f"The largest that fits into {_scaled(fits['bytes'])}B", columns, rows)


def _table(console: Any, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=bool(columns), box=box.SIMPLE)
    for number in range(len(rows[0])):
        header = columns[number].replace("_", " ") if columns else ""
        table.add_column(header, justify="right" if number else "left", overflow="fold")
    for first, *others in rows:
        table.add_row(first.replace("_", " "), *others)
    console.print(table)


def _decoded(batch: int) -> str:
    return "decoded token" if batch == 1 else f"{batch:,} decoded tokens"


def _scaled(number: int) -> str:
    """Four digits and a prefix: 14.97 T."""
    for power, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:,.2f} {prefix}"
    return f"{number} "


def _figure(number: float | None, scale: float = 1.0) -> str:
    return "not known" if number is None else f"{number / scale:,.4g}"
