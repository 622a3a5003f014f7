"""Data parallelism, on PyTorch's engines: DistributedDataParallel, and FSDP2 where parameters are sharded as well.

Each rank has rows of its own; gradients are averaged over the ranks in the backward pass.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from ..layers.linear import Linear

METHODS = ("forward", "loss", "hidden")  # of a model, those that gradients flow through
REPLICA = "_replica"  # where a module keeps the DistributedDataParallel that it runs in


def replicate(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Copies that average their gradients (DDP), over a mesh of one dim. The module itself stays what is called.

    Modules of others may leave out parameters, each rank other ones, as experts without rows: DDP has to look for them.
    """
    looks = not type(module).__module__.startswith(f"{__name__.partition('.')[0]}.")
    methods = _Methods(module)
    if looks:  # it warns where it finds none
        methods.never_used = nn.Parameter(torch.zeros(1, device=mesh.device_type))
    options = {"process_group": mesh.get_group(), "find_unused_parameters": looks, **_buffer_options(module)}
    replica = DistributedDataParallel(methods, **options)
    vars(module)[REPLICA] = replica  # not a submodule: the module is one of its own
    for method in METHODS:
        if hasattr(module, method):
            setattr(module, method, partial(_through, replica, method))
    return module


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    *,
    mp_policy: MixedPrecisionPolicy | None = None,
    autocast_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
) -> nn.Module:
    """Shard parameters, gradients and optimiser state (FSDP2), block by block.

    mesh: one dim to shard over, or two: copies, and ranks to shard over.
    autocast_dtype: of the autocast that the module runs in. The linear maps of its blocks are gathered in it, which
    changes no bit of the results: autocast would round them after they are gathered, and does not round anything else.
    """
    wide = MixedPrecisionPolicy() if mp_policy is None else mp_policy
    ranks = mesh.size(mesh.ndim - 1)
    options: dict[str, Any] = {"mesh": mesh, "shard_placement_fn": partial(_placement, ranks)}
    for block in _blocks(module):
        policy = wide
        if autocast_dtype is not None and _is_rounded_by_autocast(block):
            policy = MixedPrecisionPolicy(autocast_dtype, torch.float32, cast_forward_inputs=False)
            for part in _not_rounded_by_autocast(block):  # FSDP2 gathers what it shards together in one dtype
                fully_shard(part, **options, mp_policy=wide, reshard_after_forward=False)
        fully_shard(block, **options, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(module, **options, mp_policy=wide)  # the outermost one stays gathered between forward and backward
    for method in ("loss", "generate"):
        if hasattr(module, method):
            register_fsdp_forward_method(module, method)
    return module


@contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Context manager: copies of the module do not average the gradients of these backward passes; the next one does.

    For all micro-batches of a step but the last. It saves communication, and costs no memory: shards of FSDP2 are
    scattered and added up in every backward pass, for otherwise each rank would keep whole gradients. A module that is
    not spread over data ranks is left as it is.
    """
    replica = vars(module).get(REPLICA)
    if isinstance(replica, DistributedDataParallel):
        with replica.no_sync():
            yield
    elif isinstance(module, FSDPModule):
        module.set_requires_all_reduce(False)
        try:
            yield
        finally:
            module.set_requires_all_reduce(True)
    else:
        yield


def check_shardable(module: nn.Module) -> None:
    """Raise ConfigError for parameters that FSDP2 cannot shard."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise ConfigError(
                f"FSDP2 shards parameters along a dim, but {name} is a single number without one; "
                "nn.Parameter(torch.ones(1)) has a dim. (With dp alone it may stay.)"
            )


def is_spread(module: nn.Module) -> bool:
    """Whether it is spread over processes already."""
    parts = (REPLICA in vars(part) or isinstance(part, FSDPModule) for part in module.modules())
    return any(parts) or any(isinstance(parameter, DTensor) for parameter in module.parameters())


def agree(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give all ranks the parameters and buffers of the first one, so that copies begin as copies."""
    for axis in mesh.mesh_dim_names or ():
        group = mesh.get_group(axis)
        if group.size() == 1:
            continue
        for tensor in {id(one): one for one in (*module.parameters(), *module.buffers())}.values():
            if not tensor.is_meta:
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, group=group, group_src=0)
                tensor.detach().copy_(sent)


def _buffer_options(module: nn.Module) -> dict[str, Any]:
    """DDP sends buffers to all ranks in each forward pass; constants, which no state dict has, need not be sent."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    return {name: not {name for name, _ in module.named_buffers()}.isdisjoint(module.state_dict())}


class _Methods(nn.Module):
    """A module whose forward is any method of another one: DDP averages gradients of what its forward computed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.is_running = module, False
        self.methods = {name: getattr(module, name) for name in METHODS if hasattr(module, name)}

    def forward(self, method: str, *args: Any, **options: Any) -> Any:
        """method(*args, **options), as it was before DDP."""
        self.is_running = True
        try:
            return self.methods[method](*args, **options)
        finally:
            self.is_running = False


def _through(replica: DistributedDataParallel, method: str, *args: Any, **options: Any) -> Any:
    """A method of a module, run by DDP; a method that it calls in turn is part of the same run."""
    if replica.module.is_running:
        return replica.module.methods[method](*args, **options)
    return replica(method, *args, **options)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules in lists: the blocks of a model, which run one after another.

    Those that only hold others, and have no forward before which weights could be gathered, are gathered with the rest.
    """
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child.children() if type(block).forward is not nn.Module.forward)
        else:
            yield from _blocks(child)


def _is_rounded_by_autocast(block: nn.Module) -> bool:
    """Whether autocast rounds the linear maps below a block, and they can be gathered without its other parameters."""
    parameters = [parameter for _, parameter in block.named_parameters(remove_duplicate=False)]
    shares = len(set(map(id, parameters))) < len(parameters)
    # A layer that tensor parallelism has split takes all weights below it at once, before norms could be gathered.
    split = [layer for layer in block.modules() if "forward" in vars(layer)]
    apart = not any(True for layer in split for _ in _not_rounded_by_autocast(layer))
    return apart and not (_has_own(block) or shares) and all(one.dtype == torch.float32 for one in parameters)


def _not_rounded_by_autocast(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules below it that have parameters of their own and are no linear maps: its norms."""
    for child in module.children():
        if type(child) in (Linear, nn.Linear):
            continue
        if _has_own(child):
            yield child
        else:
            yield from _not_rounded_by_autocast(child)


def _has_own(module: nn.Module) -> bool:
    """Whether it has parameters of its own, perhaps in a list, which FSDP2 does not take for a module."""
    lists = (part for part in module.children() if isinstance(part, nn.ParameterList | nn.ParameterDict))
    return any(next(part.parameters(recurse=False), None) is not None for part in (module, *lists))


def _placement(ranks: int, parameter: nn.Parameter) -> Shard | None:
    """Along which dim a parameter is sharded; None for the first.

    Rows that tensor parallelism has split are sharded again where the parts are equal, or the columns cannot be. Raises
    ConfigError where the parts of the ranks would differ twice.
    """
    if not isinstance(parameter, DTensor) or parameter.ndim < 2 or not parameter.placements[0].is_shard(0):
        return None
    rows, columns, splits = *parameter.shape[:2], parameter.device_mesh.size()
    if rows % (splits * ranks) == 0:
        return None
    if columns % ranks == 0:
        return Shard(1)
    if rows % splits:
        raise ConfigError(
            f"tp must divide the rows of a matrix that is split, or fsdp its columns, but tp is {splits}, fsdp "
            f"{ranks}, and a matrix is {rows} x {columns}, as is the embedding of a vocabulary of {rows}."
        )
    return None
