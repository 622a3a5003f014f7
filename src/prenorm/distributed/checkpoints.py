"""Which process saves which piece of a tensor, and which part of a saved tensor it needs.

A tensor that several processes share (DTensor) has a part in each of them. A part that several hold, as copies of the
model do, is saved once. Any number of processes opens what was saved so, and may share the tensors in any other way:
each reads the numbers that it holds, and no others.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoint.pieces import Region, StoredTensors, are_all, check_names, piece_name, shape_of, whole
from ..errors import CheckpointError
from ..layers.sharded import is_sharded, local_part
from .exchange import Group, exchange, lost_process, rank_in

Parts = Mapping[str, Mapping[str, Tensor]]  # tensors by name, by the name of the part of a checkpoint that they are of


class _Holding(NamedTuple):
    """What a process has of a tensor: the dtype and shape of all of it, and which part."""

    dtype: str
    shape: tuple[int, ...]
    region: Region


_Holdings = Mapping[str, Mapping[str, _Holding]]  # by part of a checkpoint, and name


def group_for_checkpoints(timeout: float) -> Group:
    """A group of all processes for saving and opening checkpoints; None where there is one process alone.

    It is not the one that training uses, so that a thread can save meanwhile. All processes must call this together.
    timeout: seconds after which a process that does not answer is given up.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))


class Shares:
    """What this process saves of the tensors that the processes of a group hold together."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._known: list[str] = []
        self._mine: list[tuple[str, str]] = []

    def of(self, parts: Parts) -> dict[str, dict[str, Tensor]]:
        """The pieces that this process saves, by their names in a file. They are views.

        All processes must call this together; each may hold other tensors. The lowest rank that has a piece saves it.
        Raises CheckpointError where the processes do not hold each number of a tensor, or hold one in two pieces.
        """
        doing, holdings = "preparing a checkpoint", dict[str, dict[str, _Holding]]()

        def digest() -> str:
            holdings.update(_holdings(parts))
            return hashlib.sha256(json.dumps(holdings).encode()).hexdigest()

        known = exchange(digest, self._group, doing)
        if known != self._known:  # in all processes or in none: all of them have the same list
            everyone = _everyones(holdings, self._group, doing)
            self._mine, self._known = _shares(everyone)[rank_in(self._group)], known
        pieces: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
        for part, name in self._mine:
            tensor = parts[part][name]
            pieces[part][piece_name(name, region_of(name, tensor), tensor.shape)] = local_part(tensor.detach())
        return pieces


def read_share(stored: StoredTensors, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What this process holds of saved tensors, bit for bit, shared as the tensor of the same name in `like` is.

    An optimiser's tensors, named parameter:what, go with that parameter; those of another shape are read whole. Tensors
    that `like` does not have are another process's, and left out. None: all tensors, whole.
    """
    if like is None:
        return stored.read({name: whole(shape) for name, shape in stored.shapes.items()})
    owners = {name: like[owner] for name in stored.shapes if (owner := name.partition(":")[0]) in like}
    shared = {name for name, owner in owners.items() if is_sharded(owner) and owner.shape == stored.shapes[name]}
    regions = {
        name: region_of(name, owner) if name in shared else whole(stored.shapes[name]) for name, owner in owners.items()
    }
    read = stored.read(regions)
    return {name: _shared_as(owners[name], one) if name in shared else one for name, one in read.items()}


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Tensors that the processes of a group hold together, whole, on the CPU, in the first of them; {} in the others.

    All processes must call this together; each may hold other tensors. One piece travels at a time.
    """
    everyone = _everyones(_holdings({"": tensors}), group, "gathering tensors")
    mine = rank_in(group)
    found: dict[str, Tensor] = {}
    for rank, share in enumerate(_shares(everyone)):
        for _, name in share:
            dtype, shape, region = everyone[rank][""][name]
            if mine not in (0, rank):
                continue
            piece = (
                local_part(tensors[name].detach()).cpu()
                if mine == rank
                else torch.empty(shape_of(region), dtype=_dtype(dtype))
            )
            if rank != 0 and piece.numel():
                _hand_over(piece, rank, group)
            if mine == 0:
                target = found.setdefault(name, torch.empty(shape, dtype=piece.dtype))
                target[tuple(slice(*axis) for axis in region)] = piece
    return found


def region_of(name: str, tensor: Tensor) -> Region:
    """The part of a tensor that this process holds; of a plain one all.

    Raises CheckpointError for a tensor that is shared in another way than along its axes.
    """
    if not is_sharded(tensor):
        return whole(tensor.shape)
    shared: Any = tensor
    axes, place = list(whole(tensor.shape)), shared.device_mesh.get_coordinate()
    if place is None:
        return tuple((0, 0) for _ in axes)
    splits = [(dim, one) for dim, one in enumerate(shared.placements) if not one.is_replicate()]
    # A strided split is of what the plain ones to its right have left, as FSDP splits what tensor parallelism does.
    strided = [split for split in splits if getattr(split[1], "split_factor", 1) > 1]
    for dim, placement in [split for split in splits if split not in strided] + strided[::-1]:
        if not hasattr(placement, "dim"):
            raise CheckpointError(f"{name} cannot be saved or read while it is {placement}: reduce it first.")
        begin, end = axes[placement.dim]
        size = -(-(end - begin) // shared.device_mesh.size(dim))
        begin = min(end, begin + place[dim] * size)
        axes[placement.dim] = (begin, min(end, begin + size))
    region = tuple(axes)
    if (local := tuple(local_part(tensor).shape)) != shape_of(region):
        raise CheckpointError(
            f"{name}: {shared.placements} on {shared.device_mesh} give this process the part {region}, but it holds a "
            f"tensor of shape {local}."
        )
    return region


def _holdings(parts: Parts) -> dict[str, dict[str, _Holding]]:
    """What this process has."""
    for tensors in parts.values():
        check_names(tensors)
    return {
        part: {
            name: _Holding(str(one.dtype).removeprefix("torch."), tuple(one.shape), region_of(name, one))
            for name, one in tensors.items()
        }
        for part, tensors in parts.items()
    }


def _everyones(holdings: _Holdings, group: Group, doing: str) -> list[_Holdings]:
    """What all processes have, by rank."""
    return [
        {
            part: {
                name: _Holding(dtype, tuple(shape), tuple((begin, end) for begin, end in region))
                for name, (dtype, shape, region) in each.items()
            }
            for part, each in told.items()
        }
        for told in exchange(lambda: holdings, group, doing)
    ]


def _shares(everyone: list[_Holdings]) -> list[list[tuple[str, str]]]:
    """By rank, the part and name of each tensor of which that process saves the part that it holds."""
    shares: list[list[tuple[str, str]]] = [[] for _ in everyone]
    holders: dict[tuple[str, str], dict[int, _Holding]] = {}
    for rank, holdings in enumerate(everyone):
        for part, each in holdings.items():
            for name, holding in each.items():
                holders.setdefault((part, name), {})[rank] = holding
    for (part, name), held in holders.items():
        kinds = {holding[:2] for holding in held.values()}
        if len(kinds) > 1:
            raise CheckpointError(f"{name} must have one dtype and shape in all processes, but has {sorted(kinds)}.")
        shape = next(iter(kinds))[1]
        ranks: dict[Region, int] = {}
        for rank, (_, _, region) in held.items():
            if math.prod(shape_of(region)) or not (math.prod(shape) or ranks):
                ranks.setdefault(region, rank)
        if not are_all(list(ranks), shape):
            raise CheckpointError(
                f"the processes must hold all of {name}, and no number of it in two pieces, but of shape {shape} they "
                f"hold {', '.join(map(str, ranks))}."
            )
        for rank in ranks.values():
            shares[rank].append((part, name))
    return shares


def _shared_as(like: Any, local: Tensor) -> Tensor:
    """A tensor shared by processes as another one is, from what this process has of it."""
    shared: Tensor = type(like).from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return shared


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _hand_over(piece: Tensor, rank: int, group: Group) -> None:
    """From the process with this rank to the first one: there `piece` is filled, here it is sent."""
    numbers = piece.contiguous()
    try:
        if rank_in(group) == 0:
            dist.recv(numbers, group=group, group_src=rank)
        else:
            dist.send(numbers, group=group, group_dst=0)
    except RuntimeError as error:
        raise lost_process("gathering tensors", error) from error
