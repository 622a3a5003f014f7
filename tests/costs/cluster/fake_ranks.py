"""A rank of many that do not exist: collectives give tensors of the right shape at once, and are counted.

Tensors may be fake, too: they have shapes, and storages that would take so many bytes.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import pipelining
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prenorm import ModelConfig, TransformerLM
from prenorm.costs.cluster.plan import Plan
from prenorm.distributed import data_parallel, sequence
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh
from prenorm.distributed.parallelize import parallelize
from prenorm.distributed.pipeline import MicroBatch, Pipeline

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
    warnings.simplefilter("ignore")  # torch's, about its own names for collectives
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
            axis = self.axes.get(dist.ProcessGroup.unbox(group).group_name)
            size = max(one.nbytes for one in tree_leaves(args) if isinstance(one, Tensor))
            if axis is not None:
                self.found[axis, KINDS[name], size] += 1
        return func(*args, **(kwargs or {}))


class Peak(TorchDispatchMode):
    """The most bytes of all storages that any operation has met and that still live, each counted once."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes, self._known = 0, {}
        for tensor in tensors:
            self._meet(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = len(self._known)
        for one in tree_leaves((args, kwargs, result)):
            self._meet(one)
        if len(self._known) > known:
            self.bytes = max(self.bytes, sum(self._living()))
        return result

    def _meet(self, tensor: Any) -> None:
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        if isinstance(local, Tensor) and local.device.type != "meta":
            storage = local.untyped_storage()
            self._known.setdefault(storage._cdata, StorageWeakRef(storage))

    def _living(self) -> Iterator[int]:
        for key, known in list(self._known.items()):
            storage = None if known.expired() else torch.UntypedStorage._new_with_weak_ptr(known.cdata)
            if storage is None:
                del self._known[key]
            else:
                yield storage.nbytes()  # FSDP2 makes storages larger and smaller


def run_a_step(config: ModelConfig, plan: Plan, pp_rank: int = 0) -> tuple[int, Counter[tuple[str, str, int]]]:
    """The peak bytes of a rank in a step once all is there that stays, and its collectives in that step."""
    layout = plan.layout
    mesh = fake_mesh(layout, pp_rank * layout.world_size // layout.pp)
    # DistributedDataParallel works in C++, with real buckets.
    fake: Any = nullcontext() if plan.is_replicated else FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model = TransformerLM(config).train()
        ids = torch.zeros(plan.micro_batch, plan.context, dtype=torch.int64)
    run, buffers = (_pipelined if layout.pp > 1 else _plain)(model, mesh, plan, ids, fake)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for _ in range(3 if plan.is_replicated else 2):  # the first step makes states, and its end other buckets
        states = (value for state in optimizer.state.values() for value in state.values())
        counts, peak = Counted(mesh), Peak([*model.parameters(), *states, ids, *buffers()])
        with peak, counts:
            run()
            with fake:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return peak.bytes, counts.found


Run = tuple[Callable[[], object], Callable[[], list[Tensor]]]


def _plain(model: TransformerLM, mesh: DeviceMesh, plan: Plan, ids: Tensor, fake: Any) -> Run:
    """Micro-batches one after the other; and DistributedDataParallel's buckets."""
    parallelize(model, mesh, autocast_dtype=_autocast_dtype(plan))
    replica = vars(model).get(data_parallel.REPLICA)
    seen: dict[int, Tensor] = {}

    def reduce(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        seen[bucket.index()] = bucket.buffer()
        dist.all_reduce(bucket.buffer(), group=mesh.get_group("dp"))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    if replica is not None:  # by default it reduces in C++, where the fake group gives it nothing back
        replica.register_comm_hook(None, reduce)

    def run() -> None:
        for number in range(plan.micro_batches):
            is_last = number == plan.micro_batches - 1
            with fake, nullcontext() if is_last else data_parallel.no_sync(model):
                with _autocast(plan):
                    loss = model.loss(ids, ids, use_checkpointing=plan.every)
                loss.backward()

    return run, lambda: list(seen.values())


def _pipelined(model: TransformerLM, mesh: DeviceMesh, plan: Plan, ids: Tensor, fake: Any) -> Run:
    """The stages of the rank; and the buffers for what it receives."""
    options: dict[str, Any] = {"stages_per_rank": plan.pp_stages, "use_checkpointing": plan.every}
    options["autocast_dtype"] = _autocast_dtype(plan)

    @contextmanager
    def computing() -> Iterator[None]:
        with fake, _autocast(plan):  # the schedule itself needs the values of numbers that it hands to stages
            yield

    pipeline = Pipeline(model, mesh, autocast=computing, **options)
    batches = [MicroBatch(ids, ids, None, 1.0) for _ in range(plan.micro_batches)]
    shape = (*ids.shape, model.config.d_model)

    torch_stage: Any = pipelining.stage
    schedules: Any = pipelining.schedules

    def received(stage: Any, source: int) -> Any:
        """What stages tell each other of their tensors before they begin."""
        if source > stage.stage_index:
            return torch_stage._StageBackwardMeta(torch_stage._derive_grad_metas(stage._stage_meta.outputs))
        x = torch.empty(shape, requires_grad=True)
        if plan.layout.tp > 1:
            part = torch.empty(shape[0], shape[1] // plan.layout.tp, shape[2], requires_grad=True)
            x = sequence.wrap(part, shape, mesh["tp"])
            stage._mesh_cache.update_from_tensors((x,))
        return torch_stage._StageForwardMeta(torch_stage.extract_tensor_metas((x,)))

    backward = torch_stage.PipelineStage.backward_one_chunk

    def backward_on_fake_tensors(*args: Any, **keywords: Any) -> Any:
        with fake:
            return backward(*args, **keywords)

    def ask_each_other(schedule: Any, stages: Any, *_: Any) -> None:
        """Stages tell each other shapes, which schedules refuse with a fake group from torch 2.14 on."""
        for stage in stages:
            stage._inference_mode = schedules.InferenceMode.DYNAMIC

    schedules._PipelineSchedule._warmup_p2p = ask_each_other
    torch_stage.PipelineStage.backward_one_chunk = backward_on_fake_tensors
    torch_stage.PipelineStage._recv_meta = received
    torch_stage.PipelineStage._send_meta = lambda *_: None
    pipeline._sum = lambda losses: 0.0  # a fake loss has no value

    def buffers() -> list[Tensor]:
        schedules = pipeline._schedules.values()
        stages = [one for schedule in schedules for one in getattr(schedule, "_stages", None) or [schedule._stage]]
        return [
            info.buffer
            for stage in stages
            for infos in (*stage.args_recv_info.values(), *stage.grad_recv_info.values())
            for info in infos
            if info.buffer is not None
        ]

    return lambda: pipeline.add_up_gradients(batches), buffers


def _autocast_dtype(plan: Plan) -> torch.dtype | None:
    return torch.bfloat16 if plan.dtype == "bfloat16" else None


def _autocast(plan: Plan) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=plan.dtype == "bfloat16")
