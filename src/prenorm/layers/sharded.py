"""Weights that are spread over processes (DTensor, as FSDP2 makes them): found, and refused where they are not whole.

FSDP2 gathers the weights of a module around its `forward`. A call of another method meets them sharded, unless it was
registered with `torch.distributed.fsdp.register_fsdp_forward_method`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether it is a DTensor. torch.distributed is not loaded for that: without it there is none."""
    distributed: Any = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def check_gathered(module: nn.Module, method: str) -> None:
    """Raise ConfigError when `module.method`, which is not its forward, would meet weights that are sharded."""
    if torch.compiler.is_compiling() or not _is_distributed():
        return
    if name := _first_sharded(module):
        raise ConfigError(
            f"{method} needs whole weights, but {name} is sharded (DTensor), and FSDP2 gathers weights for forward "
            f'alone; torch.distributed.fsdp.register_fsdp_forward_method(model, "{method}") makes it gather them for '
            f"{method}, too. Here the model is this {_plain_name(module)}."
        )


@contextmanager
def may_gather(module: nn.Module) -> Iterator[None]:
    """Out of inference mode, in which FSDP2 cannot gather, for a step of decoding with weights that are sharded."""
    if torch.is_inference_mode_enabled() and has_sharded(module):
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        yield


def has_sharded(module: nn.Module) -> bool:
    """Whether any parameter of it is sharded at present."""
    return _is_distributed() and any(map(is_sharded, module.parameters()))


def _is_distributed() -> bool:
    """Whether there are processes to spread weights over: asked at each step of decoding, before looking at weights."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _first_sharded(module: nn.Module, prefix: str = "") -> str | None:
    """The name of a parameter that nothing gathers. A module with a hook before its forward does so itself."""
    for name, parameter in module._parameters.items():
        if is_sharded(parameter):
            return prefix + name
    found = (
        _first_sharded(child, f"{prefix}{name}.")
        for name, child in module.named_children()
        if not child._forward_pre_hooks
    )
    return next(filter(None, found), None)


def _plain_name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("FSDP")  # fully_shard puts a class of its own in the place of each
