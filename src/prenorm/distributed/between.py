"""What stands between the layers that are split: norms, dropout, and modules that all ranks run whole."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle

from ..kernels.dropout_masks import is_keyed
from . import collectives, sequence
from .local_weights import Local, Weight, computing_with, distribute, for_a_term, own, replace_forward


class Tokenwise(ParallelStyle):
    """For a module that works on each token alone, such as a norm: of a split sequence it takes the rank's tokens."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        whole = list(_same(module, device_mesh, own))
        for_terms = list(_same(module, device_mesh, for_a_term))

        def forward(x: Tensor) -> Tensor:
            run = type(module).forward
            if not sequence.is_split(x):
                with computing_with(whole):
                    return run(module, x)
            with computing_with(for_terms):
                y = run(module, x.to_local())  # type: ignore[attr-defined]
            return sequence.wrap(y, (*x.shape[:-1], y.shape[-1]), device_mesh)

        return replace_forward(module, forward)


class Unsplit(ParallelStyle):
    """For any other module with weights: all ranks run it on whole sequences, and then split again what was split.

    below: it has all that is below it, too.
    """

    def __init__(self, *, below: bool) -> None:
        self.below = below

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        parts = module.modules() if self.below else [module]
        weights = [weight for part in parts for weight in _same(part, device_mesh, own)]

        def forward(*args: Any, **options: Any) -> Any:
            was_split = any(map(sequence.is_split, (*args, *options.values())))
            named = {name: sequence.as_whole(x) for name, x in options.items()}
            with computing_with(weights):
                y = type(module).forward(module, *map(sequence.as_whole, args), **named)
            return sequence.as_split(y, device_mesh) if was_split else y

        return replace_forward(module, forward)


class SplitDropout(ParallelStyle):
    """For dropout: of a split sequence a rank drops what one process would, from the generator that all ranks share."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def forward(x: Tensor) -> Tensor:
            run = type(module).forward
            if not sequence.is_split(x):
                return run(module, x)
            part = x.to_local()  # type: ignore[attr-defined]
            if is_keyed() or not module.training or module.p == 0:  # a mask would take as much as the whole sequence
                return sequence.wrap(run(module, part), x.shape, device_mesh)
            mine = collectives.chunk_of(x.shape[sequence.DIM], device_mesh.get_group())
            mask = run(module, part.new_ones(x.shape))
            return sequence.wrap(part * mask[..., mine, :], x.shape, device_mesh)

        return replace_forward(module, forward)


class Whole(ParallelStyle):
    """For a module that works on the whole sequence, the same on all ranks: a split sequence is joined before it.

    into_sequence: what it gives is a split sequence, where it is long enough.
    """

    def __init__(self, *, into_sequence: bool = False) -> None:
        self.into_sequence = into_sequence

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        weights = [weight for part in module.modules() for weight in _same(part, device_mesh, own)]

        def forward(x: Tensor, *args: Any, **options: Any) -> Any:
            with computing_with(weights):
                y = type(module).forward(module, sequence.as_whole(x), *args, **options)
            into_sequence = self.into_sequence and sequence.can_split(y, device_mesh)
            return sequence.as_split(y, device_mesh) if into_sequence else y

        return replace_forward(module, forward)


def _same(module: nn.Module, mesh: DeviceMesh, local: Local) -> Iterator[Weight]:
    """The weights of a module itself, whole on all ranks."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            distribute(module, name, mesh)
            yield Weight(module, name, local)
