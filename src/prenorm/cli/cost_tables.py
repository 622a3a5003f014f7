"""The cost sheet as tables in a terminal."""

from collections.abc import Sequence
from typing import Any

PARTS = ("projections", "scores", "weighted_values", "feed_forward", "head")
PASSES = ("forward", "backward", "recomputation", "decoded_token")


def show(sheet: dict[str, Any]) -> None:
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
    table(console, "Parameters", (), list(parameters.items()))
    _show_flops(console, sheet["flops"], settings["batch"])
    rows = [
        ("keys and values", scaled(sheet["kv_cache_bytes"])),
        ("with weights and logits", scaled(sheet["decoding_bytes"])),
    ]
    table(console, "Bytes for decoding", (), rows)
    _show_training_bytes(console, sheet)
    if sheet["hardware"]:
        _show_hardware(console, sheet["hardware"], settings["batch"])
    if sheet["fits"]:
        _show_fits(console, sheet["fits"], settings)


def _show_flops(console: Any, flops: dict[str, Any], batch: int) -> None:
    columns = ("", "forward", "backward", "recomputation", _decoded(batch))
    rules = {"full_square": "every query with every key", "causal": "each query with the keys that it sees"}
    for name, title in rules.items():
        rows = [(part, *(scaled(flops[name][one][part]) for one in PASSES)) for part in (*PARTS, "total")]
        table(console, f"FLOPs, {title}", columns, rows)
    rows = [
        (title, scaled(flops[name]["forward"]["total"] + flops[name]["backward"]["total"]))
        for name, title in rules.items()
    ]
    rows += [
        ("the 6N rule", scaled(flops["training_step_6n"])),
        ("6N + attention", scaled(flops["training_step_6n_and_attention"])),
    ]
    table(console, "FLOPs of a training step", (), rows)


def _show_training_bytes(console: Any, sheet: dict[str, Any]) -> None:
    rows = [
        (f"saved for backward, {kernels}", scaled(one["plain"]["total"]), scaled(one["checkpointed"]["total"]))
        for kernels, one in sheet["saved_bytes"].items()
        if one
    ]
    for optimizer, size in sheet["optimizer_bytes"].items():
        rows.append((f"state of {optimizer}", scaled(size), scaled(size)))
        if sheet["peak_bytes"]:
            one = sheet["peak_bytes"][optimizer]
            rows.append((f"peak of a step with {optimizer}", scaled(one["plain"]), scaled(one["checkpointed"])))
    table(console, "Bytes for training", ("", "plain", "checkpointed"), rows)
    if sheet["not_counted"]:
        console.print(
            "What training saves for its backward pass, and so the peak of a step, is not counted for what this "
            f"model's family has: {', '.join(sheet['not_counted'])} (fields of ModelConfig.family).\n",
            markup=False,
        )


def _show_hardware(console: Any, hardware: dict[str, Any], batch: int) -> None:
    rates = [
        f"{figure(rate, scale)} {unit}"
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
        rows.append((f"training step, {name}, seconds", figure(one["step_seconds"])))
        rows.append((f"{tokens:,} tokens, {name}, days", figure(one["seconds"], 86400.0)))
        rows.append((f"{tokens:,} tokens, {name}, kWh", figure(one["kilowatt_hours"])))
    rows += [(f"{_decoded(batch)}, {unit}", figure(hardware["decoded_token"][unit])) for unit in ("seconds", "joules")]
    table(console, "Time and energy on one device", (), rows)


def _show_fits(console: Any, fits: dict[str, Any], settings: dict[str, Any]) -> None:
    rows = [
        (f"training, {optimizer}, {name}", f"{one['batch']:,}", f"{one['context']:,}")
        for optimizer, modes in (fits["training"] or {}).items()
        for name, one in modes.items()
    ]
    rows.append(("decoding", f"{fits['decoding']['batch']:,}", f"{fits['decoding']['context']:,}"))
    columns = ("", f"batch at context {settings['context']:,}", f"context at batch {settings['batch']:,}")
    table(console, f"The largest that fits into {scaled(fits['bytes'])}B", columns, rows)


def table(console: Any, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
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


def scaled(number: int) -> str:
    """Four digits and a prefix: 14.97 T."""
    for power, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:,.2f} {prefix}"
    return f"{number} "


def figure(number: float | None, scale: float = 1.0) -> str:
    return "not known" if number is None else f"{number / scale:,.4g}"
