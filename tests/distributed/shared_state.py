"""What a run would save, made up: each number's bits follow from the step, the part, the tensor and its place in it.

`parts(layout, step)` is what one process holds of it: shards are cut with torch.chunk, first for tensor parallelism,
then for FSDP, as those two do it.
"""

import zlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import Place, make_mesh

LAYERS = 3
SHAPES = {  # and the axis along which tensor parallelism splits it
    "embedding.weight": ((23, 12), 0),
    **{f"layers.{i}.attn.q_proj.weight": ((16, 12), 0) for i in range(LAYERS)},
    **{f"layers.{i}.attn.o_proj.weight": ((12, 16), 1) for i in range(LAYERS)},
    **{f"layers.{i}.norm1.weight": ((12,), None) for i in range(LAYERS)},
    "final_norm.weight": ((12,), None),
    "lm_head.weight": ((23, 12), 0),
    "scale": ((), None),
    "nothing": ((0, 4), None),
}


def whole_parts(step: int) -> dict[str, dict[str, Tensor]]:
    """All of it."""
    model = {name: _bits(step, name, shape) for name, (shape, _) in SHAPES.items()}
    optimizer = {f"{name}:exp_avg": _bits(step, f"{name}:exp_avg", shape) for name, (shape, _) in SHAPES.items()}
    steps = {f"{name}:step": torch.tensor(float(step)) for name in SHAPES}
    return {"model": model, "optimizer": optimizer | steps}


def _bits(step: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers with any bits, NaNs among them."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + step)
    return torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32).view(torch.float32)


class Spread:
    """The same in a layout of processes, made once in each of them."""

    def __init__(self, layout: Layout) -> None:
        self.place = Place(layout, dist.get_rank())
        self.mesh = make_mesh(layout)["dp", "fsdp", "tp"]

    def names(self) -> Iterator[str]:
        """The tensors of this stage. The embedding is in the last one, too, as a tied one would be."""
        stages, stage = self.place.layout.pp, self.place.pp
        for name in SHAPES:
            layer = int(name.split(".")[1]) if name.startswith("layers.") else None
            on = {layer * stages // LAYERS} if layer is not None else {0} if name == "nothing" else {stages - 1}
            if stage in (on | {0} if name == "embedding.weight" else on):
                yield name

    def parts(self, step: int) -> dict[str, dict[str, Tensor]]:
        """What this process has."""
        parts, names = whole_parts(step), set(self.names())
        return {
            part: {
                name: one if name.endswith(":step") else self.shared(name, one)
                for name, one in tensors.items()
                if name.partition(":")[0] in names
            }
            for part, tensors in parts.items()
        }

    def shared(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as this process has it: plain where nothing splits it and nothing else does."""
        layout, axis = self.place.layout, SHAPES[name.partition(":")[0]][1]
        if layout.fsdp == layout.tp == 1 or not tensor.ndim:
            return tensor
        placements: list[Placement] = [Replicate(), Replicate(), Replicate()]
        local = tensor
        if layout.tp > 1 and axis is not None:
            local, placements[2] = _chunk(local, layout.tp, axis, self.place.tp), Shard(axis)
        if layout.fsdp > 1:
            local = _chunk(local, layout.fsdp, 0, self.place.fsdp)
            placements[1] = _StridedShard(0, split_factor=layout.tp) if placements[2] == Shard(0) else Shard(0)
        return DTensor.from_local(
            local.contiguous(), self.mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )


def _chunk(tensor: Tensor, count: int, axis: int, number: int) -> Tensor:
    chunks = tensor.chunk(count, axis)  # fewer than asked for where some would be empty
    return chunks[number] if number < len(chunks) else tensor.narrow(axis, 0, 0)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape, placements and, in this process, bits."""
    if isinstance(one, DTensor) != isinstance(other, DTensor):
        return False
    if isinstance(one, DTensor) and isinstance(other, DTensor):
        if (one.shape, one.placements) != (other.shape, other.placements):
            return False
        one, other = one.to_local(), other.to_local()
    as_bytes = (each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


def differing(parts: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> list[str]:
    """The names of tensors that are not the same bit for bit, or are in one of them only."""
    keys = {(part, name) for each in (parts, expected) for part, tensors in each.items() for name in tensors}
    return [
        f"{part}: {name}"
        for part, name in sorted(keys)
        if name not in parts.get(part, {})
        or name not in expected.get(part, {})
        or not same_bits(parts[part][name], expected[part][name])
    ]
