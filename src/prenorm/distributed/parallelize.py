"""A module spread over processes: the one call for data, sharded and tensor parallelism."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor.parallel import ParallelStyle

from ..errors import ConfigError
from . import data_parallel
from .all_run import require_all_to_run
from .mesh import AXES
from .split import split

Module = TypeVar("Module", bound=nn.Module)


def parallelize(
    module: Module,
    mesh: DeviceMesh,
    *,
    styles: Mapping[str, ParallelStyle] | None = None,
    mp_policy: MixedPrecisionPolicy | None = None,
    autocast_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
) -> Module:
    """The same module, in place, spread over the processes of a mesh with dims named "dp", "fsdp", "tp" or "pp".

    All ranks call it together, with the same module: the first rank's weights are taken. Then
    dp: copies of the module, which average their gradients;
    fsdp: so do these ranks, and each has a shard of the parameters, the gradients and the optimiser state (FSDP2);
    tp: our layers are split between the ranks, and in a TransformerLM the sequence and the vocabulary, too;
    pp: nothing happens here; stages are made before, and each is a module. FSDP2 makes their copies, too (dp), because
    it can average gradients after the last of several forward passes.
    Ranks that differ in dp or fsdp take rows of their own, ranks that differ in tp the same ones. Averaging is right
    for a mean over equally many numbers; `prenorm.distributed.gradients.loss_share` is the factor for any others.

    styles: for layers of your own, by name: `prenorm.distributed.tensor_parallel.SplitLayer`, or styles of PyTorch's.
    mp_policy: the dtypes of FSDP2. autocast_dtype: that of the autocast that the module will run in: FSDP2 then gathers
    the linear maps of its blocks in it, with the same results, and reduces gradients in float32.
    reshard_after_forward: of FSDP2's blocks; False keeps them gathered for the backward pass.
    Raises ConfigError for other dims, for layers that cannot be split that many ways, and where tp would split nothing.
    """
    names = mesh.mesh_dim_names or ()
    if not names or not set(names) <= set(AXES):
        raise ConfigError(
            f"the dims of a mesh must be named, from among {', '.join(AXES)}, but they are {list(names)}; "
            'init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp")) names them.'
        )
    if mp_policy is not None and autocast_dtype is not None:
        raise ConfigError(
            f"the dtypes of FSDP2 follow from mp_policy or from autocast_dtype, but both are given: {mp_policy} and "
            f"{autocast_dtype}; leave out one of them."
        )
    sizes = {name: mesh[name].size() if name in names else 1 for name in AXES}
    if sizes["dp"] * sizes["fsdp"] * sizes["tp"] == 1 and mp_policy is None:
        return module
    if data_parallel.is_spread(module):
        raise ConfigError(
            f"a module can be spread over processes once, and this {type(module).__name__} is already; build it anew, "
            "or give one mesh with all dims."
        )
    used = [name for name in ("dp", "fsdp", "tp") if sizes[name] > 1]
    with_ddp = used == ["dp"] and sizes["pp"] == 1 and mp_policy is None
    with_fsdp = not with_ddp and (used != ["tp"] or mp_policy is not None)
    dims = ("dp", "fsdp") if sizes["dp"] > 1 else ("fsdp",)
    if with_fsdp:
        data_parallel.check_shardable(module)
        if missing := [name for name in dims if name not in names]:
            raise ConfigError(f"with {' and '.join(used)} the mesh must have a dim {missing[0]}, of size 1 perhaps.")
    for name in used:
        data_parallel.agree(module, mesh[name])
    if sizes["tp"] > 1:
        split(module, mesh["tp"], styles or {})
    if with_ddp:
        data_parallel.replicate(module, mesh["dp"])
    elif with_fsdp:
        require_all_to_run(module)
        over = mesh[dims] if len(dims) > 1 else mesh[dims[0]]
        data_parallel.shard(
            module,
            over,
            mp_policy=mp_policy,
            autocast_dtype=autocast_dtype,
            reshard_after_forward=reshard_after_forward,
        )
    return module
