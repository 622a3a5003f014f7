"""Whether the modules of a model still compute what its config says, which is all that a folder keeps of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..layers.quantized import kind_of, prepare
from ..layers.sharded import has_sharded
from ..rope_scaling import RopeScaling

# What a folder keeps elsewhere, or what changes no result of an opened model: `from_pretrained` gives it in eval mode.
WITHOUT_EFFECT = {"training", "dropout", "p", "max_seq_len"}
SHOWN = 3


def check_settings(model: nn.Module, made: type[nn.Module], config: Any) -> None:
    """Raise CheckpointError where a module was changed since it was built: the folder would open as another model.

    Modules that are split over processes have other sizes, and are not looked at.
    """
    if has_sharded(model):
        return
    with torch.device("meta"):
        fresh = made(config)
        if kind := kind_of(model):
            prepare(fresh, kind)
    if found := list(_differences(model, fresh)):
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise CheckpointError(
            f"a folder keeps the config, not what was changed in the modules: {'; '.join(found[:SHOWN])}{more}. Build "
            "the model from a config that says so, or set it back to save."
        )


def _differences(model: nn.Module, fresh: nn.Module) -> Iterator[str]:
    mine = dict(model.named_modules(remove_duplicate=False))
    for name, module in fresh.named_modules(remove_duplicate=False):
        if name not in mine:
            if next(module.parameters(), None) is None:  # missing weights are named with the tensors
                yield f"{name} is missing"
            continue
        for setting, value in vars(module).items():
            is_setting = value is None or isinstance(value, bool | int | float | str | RopeScaling)
            if setting.startswith("_") or setting in WITHOUT_EFFECT or not is_setting:
                continue
            own = getattr(mine[name], setting, value)
            if own != value:
                yield f"{name}.{setting} is {own!r}, in the config {value!r}"
