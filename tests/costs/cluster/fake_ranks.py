"""A rank of many that do not exist: collectives give tensors of the right shape at once, and are counted."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh

from ...distributed.processes import FORKS

KINDS = {
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "send": "send",
}


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """What function(*args) gives in a process of its own, forked from a warm one.

    torch keeps what it knows of a mesh for the life of a process, and would mistake the next mesh of the same shape
    for it.
    """
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_send, args=(sender, function, args), daemon=True)
    process.start()
    sender.close()
    try:
        kind, value = receiver.recv()
    finally:
        process.join()
    assert kind == "gave", value
    return value


def _send(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of torch's own names for collectives
    try:
        sender.send(("gave", function(*args)))
    except BaseException:
        sender.send(("raised", traceback.format_exc()))


def fake_mesh(layout: Layout, rank: int = 0) -> DeviceMesh:
    """The mesh of a layout as one rank sees it. For one in the life of a process: see `alone`."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    return make_mesh(layout)


class Counted(TorchDispatchMode):
    """Counts collectives by axis, kind and bytes of the whole tensor."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.axes = {mesh.get_group(axis).group_name: axis for axis in mesh.mesh_dim_names or ()}
        self.found: Counter[tuple[str, str, int]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func._schema.name.split("::")
        if namespace == "c10d" and name in KINDS:
            group = next(one for one in args if isinstance(one, torch.ScriptObject))
            axis = self.axes[dist.ProcessGroup.unbox(group).group_name]
            size = max(one.nbytes for one in tree_leaves(args) if isinstance(one, torch.Tensor))
            self.found[axis, KINDS[name], size] += 1
        return func(*args, **(kwargs or {}))


def counted(collectives) -> Counter[tuple[str, str, int]]:
    """Predicted collectives, by the same three."""
    found: Counter[tuple[str, str, int]] = Counter()
    for one in collectives:
        found[one.axis, one.kind, one.bytes] += one.count
    return +found
