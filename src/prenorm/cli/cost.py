"""`prenorm cost MODEL`: what a model costs, in parameters, operations, bytes, time and energy."""

import json

from ..costs.devices import DEVICES, Device
from ..costs.fits import parse_bytes
from ..costs.sheet import cost_sheet
from ..errors import ConfigError
from ..validation import check_number, did_you_mean
from . import cost_layout
from .cost_flags import CostFlags
from .cost_tables import show
from .flags import flags_from
from .named_model import find_model

CONTEXT = 2048  # or the model's max_seq_len, where that is smaller


def parse(argv: list[str]) -> CostFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: CostFlags = flags_from(CostFlags, argv, prog="prenorm cost")
    return flags


def run(flags: CostFlags) -> int:
    """Print the costs, and return the exit code."""
    if flags.published_runs:
        return cost_layout.run_published(flags)
    if not flags.model:
        raise ConfigError(
            "MODEL is missing: a folder with a model, or the name of a published one, such as llama-3-8b."
        )
    if flags.gpus is not None:
        return cost_layout.run(flags)
    if given := [name for name in cost_layout.ONLY_SPREAD if getattr(flags, name) is not None]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{names}: only with --gpus, which says how many devices there are.")
    device = _device(flags)
    memory = None if flags.fits is None else parse_bytes(flags.fits)
    named = find_model(flags.model)
    sheet = {"model": flags.model, "source": named.source} | cost_sheet(
        named.architecture,
        batch=1 if flags.batch is None else flags.batch,
        context=min(CONTEXT, named.architecture.max_seq_len) if flags.context is None else flags.context,
        dtype=flags.dtype,
        device=device,
        tokens=flags.tokens,
        utilisation=1.0 if flags.utilisation is None else flags.utilisation,
        memory=memory,
    )
    if flags.json:
        print(json.dumps(sheet, indent=2))
    else:
        show(sheet)
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
