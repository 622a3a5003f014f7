"""Sharded weights (DTensor, as FSDP2 makes them): detected, and refused where a method needs them whole.

FSDP2 gathers the weights of a module around its `forward`. Any other method finds them sharded, unless it was
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
    """Whether it is a DTensor. Does not import torch.distributed, without which no DTensor exists."""
    distributed: Any = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: all of it, unless it is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def check_gathered(module: nn.Module, method: str) -> None:
    """Raise ConfigError when `module.method`, which is not its forward, would find sharded weights."""
    if torch.compiler.is_compiling() or not _is_distributed():
        return
    if name := _first_sharded(module):
        raise ConfigError(
            f"{method} needs whole weights, but {name} is sharded (DTensor), and FSDP2 gathers weights only for "
            f'forward; torch.distributed.fsdp.register_fsdp_forward_method(model, "{method}") makes it gather them for '
            f"{method}, too. Here the model is this {_plain_name(module)}."
        )


@contextmanager
def may_gather(module: nn.Module) -> Iterator[None]:
    """Context manager: leaves inference mode, in which FSDP2 cannot gather, for a decoding step on sharded weights."""
    if torch.is_inference_mode_enabled() and has_sharded(module):
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        yield


def is_spread(module: nn.Module) -> bool:
    """Whether `prenorm.parallelize` or FSDP2 has put a forward or hooks of its own on the module."""
    return "_replica" in vars(module) or type(module).__name__ != _plain_name(module)


def has_sharded(module: nn.Module) -> bool:
    """Whether any of its parameters is sharded at the moment."""
    return _is_distributed() and any(map(is_sharded, module.parameters()))


def _is_distributed() -> bool:
    """Whether torch.distributed is running: a cheap test before looking at weights, made at each decoding step."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _first_sharded(module: nn.Module, prefix: str = "") -> str | None:
    """The name of a sharded parameter that will not be gathered.

    Modules with a forward pre-hook (FSDP2) or a replaced forward (`prenorm.parallelize`) see to those below them.
    """
    for name, parameter in module._parameters.items():
        if is_sharded(parameter):
            return prefix + name
    found = (
        _first_sharded(child, f"{prefix}{name}.")
        for name, child in module.named_children()
        if not child._forward_pre_hooks and "forward" not in vars(child)
    )
    return next(filter(None, found), None)


def _plain_name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("FSDP")  # fully_shard replaces each class by one of its own
