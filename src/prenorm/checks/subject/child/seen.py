"""What some modules of a block were given, and what they gave."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .tensors import plain
from .trace import Trace, traced


class Seen:
    """The first call of each module that runs on one tensor: {"given", "result", "operations" that torch carried out}.

    Those that a call which raises had finished are there as well.
    """

    def __init__(self, block: nn.Module, names: Sequence[str]) -> None:
        self._modules = {name: block.get_submodule(name) for name in names}
        self._given: dict[str, Tensor] = {}
        self.calls: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While it runs, calls are noted."""
        with contextlib.ExitStack() as stack:
            for name, module in self._modules.items():
                self._watch(stack, name, module)
            yield

    def _watch(self, stack: contextlib.ExitStack, name: str, module: nn.Module) -> None:
        trace = Trace()

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name not in self._given and len(inputs) == 1 and isinstance(inputs[0], Tensor):
                self._given[name] = plain(inputs[0])

        def after(_: nn.Module, __: Any, result: Any) -> None:
            if name in self._given and name not in self.calls and isinstance(result, Tensor):
                call = {"given": self._given[name], "result": plain(result), "operations": sorted(trace.operations)}
                self.calls[name] = call

        for handle in (module.register_forward_pre_hook(before), module.register_forward_hook(after)):
            stack.callback(handle.remove)
        stack.enter_context(traced(module, trace))
