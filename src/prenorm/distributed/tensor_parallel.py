"""Tensor parallelism: each rank has some heads of an attention, and some features of a feed-forward.

A layer is split between its first matrices, by rows, and its last one, by columns: each rank computes a term of the
output, and the terms are summed. Between the layers the sequence may be split instead (sequence.py). Layers keep their
classes and names: a style replaces the `forward` of one module by what a rank does differently. Parameters become
DTensors, of which a rank has a part.
Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle

from ..errors import ConfigError
from ..layers.attention import SelfAttention
from ..layers.cross_attention import MultiHeadAttention
from . import collectives, sequence
from .local_weights import (
    Local,
    Weight,
    computing_with,
    distribute,
    for_a_term,
    on_first_rank,
    own,
    parameters_of,
    replace_forward,
)


class Split(ParallelStyle):
    """A style that cannot split everything."""

    @abstractmethod
    def check(self, module: nn.Module, ranks: int) -> None:
        """Raise ConfigError where the module cannot be split between so many ranks."""


class SplitLayer(Split):
    """Splits a layer between its linear maps: a rank has rows of the first ones, and columns of the last ones.

    first, last: names of the layer's linear maps, those that take its input and those that give its output. counts:
    names of the layer's integers, such as num_heads, that count what is split. What the layer does in between must
    treat all that is split alike, and its other weights must serve every part.
    Raises ConfigError where the ranks cannot have equal parts.
    """

    def __init__(self, first: tuple[str, ...], last: tuple[str, ...], counts: tuple[str, ...] = ()) -> None:
        self.first, self.last, self.counts = first, last, counts

    def check(self, module: nn.Module, ranks: int) -> None:
        """Raise ConfigError where the ranks cannot have equal parts."""
        for name in self.first:
            part_of(f"the outputs of {name}", _linear(module, name).weight.shape[0], ranks)
        for name in self.last:
            part_of(f"the inputs of {name}", _linear(module, name).weight.shape[1], ranks)
        for name in self.counts:
            part_of(name, getattr(module, name), ranks)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        weights = [
            *(weight for name in self.first for weight in _split_rows(module, name, device_mesh)),
            *(weight for name in self.last for weight in _split_columns(module, name, device_mesh)),
        ]
        weights += _others(module, weights, device_mesh)
        for name in self.counts:
            setattr(module, name, part_of(name, getattr(module, name), device_mesh.size()))
        return replace_forward(module, _Part(module, weights, device_mesh).forward)


class SplitAttention(Split):
    """Splits our attention by heads; where key and value heads are fewer than ranks, several ranks use the same one."""

    def check(self, module: nn.Module, ranks: int) -> None:
        """Raise ConfigError where heads cannot be split so, or queries and keys have a norm over all heads together."""
        assert isinstance(module, SelfAttention | MultiHeadAttention)
        part_of("num_heads", module.num_heads, ranks)
        kv_heads = getattr(module, "num_kv_heads", module.num_heads)
        if kv_heads % ranks and ranks % kv_heads:
            raise ConfigError(
                f"tp must divide num_kv_heads or be a multiple of it, but tp is {ranks} and num_kv_heads {kv_heads}; "
                f"tp={kv_heads} would do."
            )
        for norm in (getattr(module, "q_norm", None), getattr(module, "k_norm", None)):
            if norm is not None and getattr(norm, "d_model", None) != module.head_dim:
                raise ConfigError(
                    f"tp must be 1 for an attention whose norm of queries and keys is not the same for each head, as "
                    f"in this {type(norm).__name__}."
                )

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, SelfAttention | MultiHeadAttention)
        ranks, heads, head_dim = device_mesh.size(), module.num_heads, module.head_dim
        kv_heads = getattr(module, "num_kv_heads", heads)
        weights = [*_split_rows(module, "q_proj", device_mesh), *_split_columns(module, "o_proj", device_mesh)]
        for name in ("k_proj", "v_proj"):
            if kv_heads % ranks == 0:
                weights += _split_rows(module, name, device_mesh)
            else:
                head = device_mesh.get_local_rank() * kv_heads // ranks
                weights += _same_rows(module, name, device_mesh, slice(head * head_dim, (head + 1) * head_dim))
        weights += _others(module, weights, device_mesh)
        module.num_heads = heads // ranks
        if isinstance(module, SelfAttention):
            module.num_kv_heads = max(kv_heads // ranks, 1)
            return replace_forward(module, _Part(module, weights, device_mesh, heads).forward)
        part = _CrossPart(module, weights, device_mesh, heads)
        module.project, module.attend = part.project, part.attend  # type: ignore[method-assign]
        return replace_forward(module, part.forward)


def part_of(name: str, size: int, ranks: int) -> int:
    """A size divided by the ranks. Raises ConfigError where that leaves a rest."""
    if size % ranks:
        raise ConfigError(f"tp must divide {name}, but {ranks} does not divide {size}.")
    return size // ranks


def term_of(output: Any) -> Tensor | None:
    """The tensor that a layer gives, alone or in a tuple with nothing beside it; None where it gives anything else."""
    if isinstance(output, tuple) and output and all(one is None for one in output[1:]):
        output = output[0]
    return output if isinstance(output, Tensor) else None


class _Part:
    """A layer as one rank computes it: from whole or split tensors to a term of the output, and the terms' sum."""

    def __init__(self, module: nn.Module, weights: list[Weight], mesh: DeviceMesh, heads: int | None = None) -> None:
        self.module, self.weights, self.mesh, self.heads = module, weights, mesh, heads

    def forward(self, *args: Any, **options: Any) -> Any:
        """The layer's forward: whole, or split if its first tensor is."""
        given = next((x for x in (*args, *options.values()) if isinstance(x, Tensor)), None)
        output = self.run(type(self.module).forward, *args, **options)
        term = term_of(output)
        if term is None:
            raise ConfigError(
                f"a layer that is split must give one tensor, which is a sum over its parts, and None beside it, but "
                f"this {type(self.module).__name__} gives {_described(output)}; have it give one, or leave it whole."
            )
        total = self.summed(term, given)
        return total if output is term else (total, *output[1:])

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A function of the layer and tensors, on the rank's weights and heads."""
        known: dict[int, Tensor] = {}  # self-attention may be given the same tensor three times
        inputs = [self._used(x, known) for x in args]
        named = {name: self._used(x, known) for name, x in options.items()}
        with computing_with(self.weights):
            return function(self.module, *inputs, **named)

    def _used(self, x: Any, known: dict[int, Tensor]) -> Any:
        """An argument as this rank computes with it."""
        if type(x) in (tuple, list):
            return type(x)(self._used(one, known) for one in x)
        if not isinstance(x, Tensor):
            return x
        if not x.is_floating_point():
            return _own_heads(x, self.mesh, self.heads)
        if id(x) not in known:
            known[id(x)] = _gathered(x, self.mesh)
        return known[id(x)]

    def summed(self, term: Tensor, given: Tensor | None) -> Tensor:
        """The sum of the ranks' terms: split if `given` is, otherwise whole."""
        group = self.mesh.get_group()
        if sequence.is_split(given):
            return sequence.wrap(collectives.scatter_sum(term, group, sequence.DIM), term.shape, self.mesh)
        return collectives.total(term, group)


class _CrossPart(_Part):
    """Cross-attention, which blocks call in two steps: keys and values, and what attends to them."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Both steps."""
        return self.attend(query, *self.project(key, value), mask)

    def project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the rank's heads."""
        return self.run(MultiHeadAttention.project, key, value)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output, from the rank's keys and values."""

        def term(module: Any, query: Tensor, mask: Tensor | None) -> Tensor:
            return MultiHeadAttention.attend(module, query, keys, values, mask)

        return self.summed(self.run(term, query, mask), query)


def _described(output: Any) -> str:
    names = [type(one).__name__ for one in (output if isinstance(output, tuple) else (output,))]
    return f"({', '.join(names)})" if isinstance(output, tuple) else names[0]


def _gathered(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The whole sequence, of which each rank makes a term."""
    group = mesh.get_group()
    if sequence.is_split(x):
        return collectives.gather(x.to_local(), group, sequence.DIM, x.shape[sequence.DIM])  # type: ignore[attr-defined]
    return collectives.copy(x, group)


def _own_heads(mask: Tensor, mesh: DeviceMesh, heads: int | None) -> Tensor:
    """The part for this rank's heads of a mask that has one for each."""
    if mask.dtype != torch.bool or mask.ndim < 3 or heads is None or mask.shape[-3] != heads:
        return mask
    mine = collectives.chunk_of(heads, mesh.get_group())
    return mask[..., mine, :, :]


def _split_rows(layer: nn.Module, name: str, mesh: DeviceMesh) -> Iterator[Weight]:
    """A linear map of which this rank computes some outputs."""
    linear = _linear(layer, name)
    part = part_of(f"the outputs of {name}", linear.weight.shape[0], mesh.size())
    _set_size(linear, "out_features", part)
    yield from _distributed(linear, mesh, {"weight": 0, "bias": 0}, own)


def _split_columns(layer: nn.Module, name: str, mesh: DeviceMesh) -> Iterator[Weight]:
    """A linear map that takes some of its inputs on this rank, and gives a term of its output."""
    linear = _linear(layer, name)
    part = part_of(f"the inputs of {name}", linear.weight.shape[1], mesh.size())
    _set_size(linear, "in_features", part)
    yield from _distributed(linear, mesh, {"weight": 1}, own)
    yield from _distributed(linear, mesh, {"bias": None}, on_first_rank)


def _same_rows(layer: nn.Module, name: str, mesh: DeviceMesh, mine: slice) -> Iterator[Weight]:
    """A linear map that all ranks have whole, of which this rank computes some outputs, as others do."""
    linear = _linear(layer, name)
    _set_size(linear, "out_features", mine.stop - mine.start)
    yield from _distributed(linear, mesh, {"weight": None, "bias": None}, lambda weight: for_a_term(weight)[mine])


def _others(layer: nn.Module, weights: list[Weight], mesh: DeviceMesh) -> Iterator[Weight]:
    """The other weights below a layer: whole on all ranks, and used by each on its part."""
    known = {(id(module), name) for module, name, _ in weights}
    for module, name in parameters_of(layer):
        if (id(module), name) not in known:
            distribute(module, name, mesh)
            yield Weight(module, name, for_a_term)


def _distributed(linear: nn.Module, mesh: DeviceMesh, dims: dict[str, int | None], local: Local) -> Iterator[Weight]:
    for name, dim in dims.items():
        if linear._parameters.get(name) is not None:
            distribute(linear, name, mesh, dim)
            yield Weight(linear, name, local)


def is_linear_map(module: nn.Module) -> bool:
    """Whether it has a weight (out_features, in_features), and perhaps a bias; Conv1D of transformers has (in, out)."""
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or weight.ndim != 2 or not set(module._parameters) <= {"weight", "bias"}:
        return False
    return bias is None or bias.shape == weight.shape[:1]


def _linear(layer: nn.Module, name: str) -> Any:
    """The linear map of this name. Raises ConfigError for other modules."""
    linear = layer.get_submodule(name)
    if not is_linear_map(linear):
        raise ConfigError(
            f"only a linear map, with a weight (out_features, in_features) and perhaps a bias, can be split, but "
            f"{name} is a {type(linear).__name__}."
        )
    return linear


def _set_size(linear: nn.Module, name: str, size: int) -> None:
    """Have a linear layer tell the size of the rank's part, if it tells one."""
    if hasattr(linear, name):
        setattr(linear, name, size)
