"""Counting transfers between Python and the device: on a CPU, the calls that would wait on a GPU are counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Their results, or the shapes of their results, depend on values: on a GPU Python waits for them.
WAITING = {
    *("item", "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "masked_select", "equal"),
    *("allclose", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
}


class Traffic(TorchDispatchMode):
    """Counts, while it is entered, `fetches` from the device and `sends` to it."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[str] = []
        self.sends: list[str] = []
        self._paused = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if name in WAITING or by_mask:
            self._count(self.fetches, name)
        if name == "lift_fresh":  # torch.tensor(numbers), as_tensor, from_numpy
            self._count(self.sends, name)
        return function(*args, **(kwargs or {}))

    def __enter__(self) -> "Traffic":
        self._methods = {name: getattr(Tensor, name) for name in ("tolist", "numpy", "__array__")}
        for name, method in self._methods.items():
            setattr(Tensor, name, self._counted(name, method))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, method in self._methods.items():
            setattr(Tensor, name, method)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude what a toy model does inside."""
        before, self._paused = self._paused, True
        yield
        self._paused = before

    def _counted(self, name: str, method: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._count(self.fetches, name)
            return method(*args, **kwargs)

        return counted

    def _count(self, calls: list[str], name: str) -> None:
        if not self._paused:
            calls.append(name)

    def unheard(self, function: Any) -> Any:
        """The function, excluded from the count."""

        def quiet(*args: Any, **kwargs: Any) -> Any:
            with self.paused():
                return function(*args, **kwargs)

        return quiet


def per_step(steps: Iterator[Any], traffic: Traffic) -> list[tuple[Any, list[str], list[str]]]:
    """Every step of a stream, with its fetches and sends."""
    found = []
    while True:
        fetches, sends = len(traffic.fetches), len(traffic.sends)
        with traffic:
            step = next(steps, None)
        if step is None:
            return found
        found.append((step, traffic.fetches[fetches:], traffic.sends[sends:]))
