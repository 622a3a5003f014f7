"""Modules in lists, of which a forward pass may run some and not others, as the experts of a mixture: all must run.

FSDP2 gathers the weights of each on all ranks together. Where one of them left out a module, they would take the
weights and gradients of another one for it, or wait for ever.
"""

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn

from ..errors import ConfigError
from ..models.encoder import TransformerEncoder
from ..models.encoder_decoder import EncoderDecoder
from ..models.lm import TransformerLM

ALL_RUN = (TransformerLM, TransformerEncoder, EncoderDecoder)  # of ours, whose layers always run


def require_all_to_run(module: nn.Module) -> None:
    """Have a forward pass raise ConfigError where it ran some modules of a list and not others."""
    lists = list(_lists(module, ""))
    ran: set[nn.Module] = set()

    def begin(*_: Any) -> None:
        ran.clear()

    def note(part: nn.Module, *_: Any) -> None:
        ran.add(part)

    def check(*_: Any) -> None:
        for runs in lists:
            idle = [name for name, parts in runs.items() if ran.isdisjoint(parts)]
            if idle and len(idle) < len(runs):
                raise ConfigError(
                    f"with fsdp all ranks must run the same modules, because they gather weights together, but rank "
                    f"{dist.get_rank()} did not run {', '.join(idle[:5])} in this forward pass, and ran others of that "
                    f"list; where a module has no rows to work on, run it on none of them: {idle[0]}(x[:0])."
                )

    for parts in (parts for runs in lists for parts in runs.values()):
        for part in parts:
            part.register_forward_pre_hook(note)
    if lists:
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(check)


def _lists(module: nn.Module, name: str) -> Iterator[dict[str, list[nn.Module]]]:
    """Each list of modules with weights: by name, those that show by a call that the module ran."""
    if isinstance(module, ALL_RUN):
        return
    if isinstance(module, nn.ModuleList):
        weighty = {
            f"{name}.{each}": part for each, part in module.named_children() if any(True for _ in part.parameters())
        }
        if len(weighty) > 1:
            yield {each: _called(part) for each, part in weighty.items()}
    for child, part in module.named_children():
        yield from _lists(part, f"{name}.{child}" if name else child)


def _called(module: nn.Module) -> list[nn.Module]:
    """The module, or those that it only holds."""
    if type(module).forward is not nn.Module.forward:
        return [module]
    return [below for part in module.children() for below in _called(part)]
