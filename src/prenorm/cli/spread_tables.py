"""The sheet of a step on many devices as tables in a terminal."""

import sys
from typing import Any

from .cost_tables import figure, scaled, table

SHOWN = 8  # layouts of a proposal
WIDTH = 160  # of tables in a file


def show_spread(sheet: dict[str, Any]) -> None:
    """The sheet of one layout, and the layouts that were compared with it."""
    console = _console()
    settings, hardware, proposal = sheet["settings"], sheet["hardware"], sheet["proposal"]
    console.print(
        f"{sheet['model']} on {settings['devices']:,} x {hardware['name']}: {settings['batch']:,} x "
        f"{settings['context']:,} tokens a step, {settings['dtype']}, {settings['optimizer']}.\n"
        f"Sizes from {sheet['source']}.\n"
        f"Rates from {hardware['source']}; {settings['utilisation']:.0%} of them are assumed to be reached.\n\n"
        f"Layout: {flags_of(sheet['layout'])}; micro-batches of a data rank: {settings['micro_batches']:,} of "
        f"{settings['micro_batch_size']} rows; {_checkpointed(settings)}.",
        markup=False,
    )
    if proposal[0]["layout"] == sheet["layout"]:
        console.print("No other layout is faster.\n")
    elif proposal[0]["fits"]:
        best = proposal[0]
        console.print(
            f"The fastest would be {flags_of(best['layout'])}: {figure(best['step_seconds'])} s a step.\n", markup=False
        )
    memory = sheet["memory_bytes"]
    rows: list[tuple[str, ...]] = [
        (name, scaled(size) + "B") for name, size in memory.items() if size and name != "total"
    ]
    rows.append(("total", f"{scaled(memory['total'])}B of {scaled(sheet['usable_bytes'])}B"))
    table(console, "Memory of the fullest device", (), rows)
    rows = [
        (one["axis"], f"{one['devices']:,}", one["link"], f"{one['collectives']:,}", f"{scaled(one['bytes'])}B",
         figure(one["seconds"]))
        for one in sheet["links"]
    ]  # fmt: skip
    if rows:
        columns = ("", "devices", "link", "collectives", "sent by each", "seconds")
        table(console, "Collectives of a step, overlapped or not", columns, rows)
    whole = sheet["step_seconds"]["total"]
    rows = [
        (name, figure(seconds), f"{seconds / whole:.1%}") for name, seconds in sheet["step_seconds"].items() if seconds
    ]
    table(console, "Seconds of a step", ("", "seconds", "share"), [*rows[1:], rows[0]])
    training = sheet["training"]
    rows = [
        ("pipeline bubble", f"{sheet['bubble']:.1%}"),
        ("tokens per second", f"{sheet['tokens_per_second']:,.0f}"),
        ("tokens per second and device", f"{sheet['tokens_per_second_per_device']:,.0f}"),
        ("MFU, causal", f"{sheet['mfu_causal']:.1%}"),
        ("MFU, 6N + attention", f"{sheet['mfu_6n_attention']:.1%}"),
        (f"{training['tokens']:,} tokens, days", figure(training["seconds"], 86400.0)),
        (f"{training['tokens']:,} tokens, MWh", figure(training["kilowatt_hours"], 1000.0)),
    ]
    table(console, "What it comes to", (), rows)
    _show_proposal(console, proposal)
    if not sheet["fits"]:
        console.print("This layout does not fit into the memory of a device.")


def _show_proposal(console: Any, proposal: list[dict[str, Any]]) -> None:
    possible = [one for one in proposal if one["fits"]]
    columns = ("layout", "rows", "checkpointed", "memory", "seconds", "what is wrong with it")
    rows: list[tuple[str, ...]] = [
        (flags_of(one["layout"]), str(one["micro_batch_size"]), _every(one["checkpoint_activations_every"]),
         f"{scaled(one['memory_bytes'])}B", figure(one["step_seconds"]), one["reason"] or "the fastest")
        for one in possible[:SHOWN]
    ]  # fmt: skip
    if rows:
        table(console, f"The fastest of {len(possible):,} layouts that fit", columns, rows)
    others: dict[str, list[str]] = {}
    for one in proposal:
        if not one["fits"]:
            others.setdefault(one["reason"].split(",")[0] if one["memory_bytes"] is None else "memory", []).append(
                f"{flags_of(one['layout'])}: {one['reason']}"
            )
    rows = [(f"{len(those):,}", those[0]) for those in others.values()]
    if rows:
        table(console, "Layouts that cannot be", ("how many", "such as"), rows[:SHOWN])


def show_runs(runs: list[dict[str, Any]]) -> None:
    """Published step times beside the predicted ones."""
    console = _console()
    columns = ("run", "hardware", "layout", "published", "seconds", "predicted", "error", "at full rates")
    rows: list[tuple[str, ...]] = [
        (one["name"], one["hardware"], flags_of(one["layout"]), one["published"], figure(one["published_seconds"]),
         figure(one["predicted_seconds"]), f"{one['error']:+.0%}", figure(one["seconds_at_full_rates"]))
        for one in runs
    ]  # fmt: skip
    table(console, "Seconds of a step, published and predicted", columns, rows)
    for source in dict.fromkeys(one["source"] for one in runs):
        notes = dict.fromkeys(one["note"] for one in runs if one["source"] == source and one["note"])
        console.print(f"{source}{': ' if notes else ''}{'; '.join(notes)}.", markup=False)


def _console() -> Any:
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH
    return Console(soft_wrap=True, highlight=False, width=width)


def flags_of(layout: dict[str, int]) -> str:
    """The flags of a layout, without those that are 1."""
    flags = [f"--{axis.replace('_', '-')} {size}" for axis, size in layout.items() if size > 1]
    return " ".join(flags) or "--dp 1"


def _checkpointed(settings: dict[str, Any]) -> str:
    every = settings["checkpoint_activations_every"]
    return {0: "no block checkpointed", 1: "every block checkpointed"}.get(every, f"every {every}th block checkpointed")


def _every(every: int) -> str:
    return {0: "none", 1: "all"}.get(every, f"1 of {every}")
