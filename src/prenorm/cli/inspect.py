"""`prenorm inspect FOLDER`: what a model's folder holds, and what of it would be refused."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .flags import flags_from

FOUND_FAULTS = 1
# Of config.to_dict(), in the order that they are shown.
SIZES = ("num_layers", "num_decoder_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectFlags:
    """Say what a model's folder holds, without reading its weights, and why it would not be opened.

    The exit code is 0 where it would, and 1 where it would not.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder in Hugging Face's layout, or that of a run."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON document and nothing else: docs/how-do-i-open-a-hugging-face-folder.md explains its keys."""


def parse(argv: list[str]) -> InspectFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: InspectFlags = flags_from(InspectFlags, argv, prog="prenorm inspect")
    return flags


def run(flags: InspectFlags) -> int:
    """Print the sheet. Gives the exit code."""
    from ..checkpoint.inspection import inspect_folder

    folder = flags.folder.expanduser()
    unfinished = (folder / "config.toml").is_file() and not (folder / "config.json").exists()
    sheet = _of_run(folder) if unfinished else inspect_folder(folder)
    if flags.json:
        print(json.dumps(sheet, indent=2))
    else:
        _show(sheet)
    return FOUND_FAULTS if sheet["refused"] else 0


def _of_run(folder: Path) -> dict[str, Any]:
    """The sheet of a run that has not ended: the model that it trains."""
    from ..checkpoint.inspection import sizes
    from ..checkpoint.names import parameters_of
    from ..checkpoint.tokenizer_files import tokenizer_files_in
    from .named_model import config_of_run

    config = config_of_run(folder)
    found = {parameter.name: ("F32", parameter.shape) for parameter in parameters_of(config)}
    return {
        "folder": str(folder),
        "model_type": None,
        "architecture": "TransformerLM",
        "quantized": None,
        "understood": True,
        "context": config.max_seq_len,
        "config": config.to_dict(),
        **sizes(config, found),
        "files": {},
        "tokenizer_files": tokenizer_files_in(folder),
        "refused": [f"the training has not ended: prenorm train --out {folder} --resume goes on with it."],
        "no_text": [],
    }


def _show(sheet: dict[str, Any]) -> None:
    """The sheet as lines and tables."""
    from rich.console import Console

    from ..checkpoint.inspection import parameter_table

    console = Console(soft_wrap=True, highlight=False, markup=False)
    named = sheet["architecture"] or "a model"
    of_type = "" if sheet["model_type"] is None else f" (model_type {sheet['model_type']})"
    kind = "" if sheet["quantized"] is None else f", matrices in {sheet['quantized']}"
    console.print(f"{sheet['folder']}: {named}{of_type}{kind}, {sheet['parameters']:,} parameters.\n")
    config = sheet["config"]
    names = SIZES if sheet["understood"] else tuple(config)
    rows = [(name, _number(config[name])) for name in names if config.get(name) is not None]
    learned = (config.get("family") or {}).get("learned_positions")
    unsaid = (*names, "max_seq_len", *(("rope_theta", "rope_interleaved") if learned else ()))
    rows += [(name, _text(name, value)) for name, value in config.items() if name not in unsaid and _says(value)]
    _table(console, "Sizes", (), [*rows, ("context, tokens", _number(sheet["context"]))])
    of_tensors = [
        (name, dtype, shape, f"{count:,}", f"{numbers:,}")
        for name, dtype, shape, count, numbers in parameter_table(sheet["tensors"])
    ]
    _table(console, "Parameters", ("name", "dtype", "shape", "tensors", "numbers"), of_tensors)
    columns = list(dict.fromkeys(name for one in sheet["memory"].values() for name in one))
    rows = [
        (dtype, *(_bytes(one[name]) if name in one else "" for name in columns))
        for dtype, one in sheet["memory"].items()
    ]
    _table(console, "Memory", ("dtype", *(name.replace("_", " ") for name in columns)), rows)
    stored = [(name, _bytes(size)) for name, size in sheet["files"].items()]
    _table(console, "Weight files", ("file", "bytes of tensors"), stored)
    console.print(f"Tokenizer: {', '.join(sheet['tokenizer_files']) or 'no files'}.")
    for problem in sheet["refused"]:
        console.print(f"\nRefused: {problem}")
    for problem in sheet["no_text"]:
        console.print(f"\nNo text: {problem}")
    if not sheet["refused"]:
        console.print("\nTransformerLM.from_pretrained opens it." if sheet["model_type"] else "")


def _says(value: Any) -> bool:
    """Whether a switch of the config is anything but off."""
    return value not in (None, False, 0.0)


def _text(name: str, value: Any) -> str:
    """A value; of a record, the fields that are not at their defaults."""
    from ..family import Family
    from ..rope_scaling import RopeScaling

    if not isinstance(value, dict):
        return _number(value)
    defaults = {one.name: one.default for one in dataclasses.fields(Family if name == "family" else RopeScaling)}
    fields = {key: one for key, one in value.items() if one != defaults[key]}
    return ", ".join(f"{key}={_text(key, one)}" for key, one in fields.items())


def _number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def _bytes(number: int) -> str:
    from ..checkpoint.room import gigabytes

    return gigabytes(number)


def _table(console: Any, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(title=title, title_justify="left", show_header=bool(columns), box=box.SIMPLE)
    for number in range(len(rows[0])):
        table.add_column(columns[number] if columns else "", justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
