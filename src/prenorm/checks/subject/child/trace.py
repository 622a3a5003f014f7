"""What torch carries out while a block runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .watch import statements


class Trace(TorchDispatchMode):
    """The names of the operations that torch carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.created: set[tuple[int, ...]] = set()
        self.modules_created = 0
        self.masked = False
        self.random: list[dict[str, Any]] = []  # the statement that first drew random numbers

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.name()).removeprefix("aten::")
        self.operations.add(name)
        may_draw = not self.random and torch.Tag.nondeterministic_seeded in function.tags
        state = torch.get_rng_state() if may_draw else None
        result = function(*args, **(kwargs or {}))
        if name.partition(".")[0] in ("ones", "ones_like", "full", "full_like", "empty", "zeros", "fill_"):
            self.created.add(tuple(result.shape))
        if name.startswith("masked_fill") and args[1].dim() >= 2:
            self.masked = self.masked or bool(args[1].any())
        if state is not None and not torch.equal(state, torch.get_rng_state()):  # attention draws only if it drops
            self.random = statements()
        return result


@contextlib.contextmanager
def traced(block: nn.Module, trace: Trace) -> Iterator[None]:
    """Trace what the block does, and not what the line that calls it does beside it."""
    with contextlib.ExitStack() as running:

        def begin(*_: Any) -> None:
            running.enter_context(trace)
            running.enter_context(_modules_counted(trace))

        hooks = [
            block.register_forward_pre_hook(begin),
            block.register_forward_hook(lambda *_: running.close()),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextlib.contextmanager
def _modules_counted(trace: Trace) -> Iterator[None]:
    plain = nn.Module.__init__

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        trace.modules_created += 1
        plain(self, *args, **kwargs)

    nn.Module.__init__ = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__init__ = plain  # type: ignore[method-assign]
