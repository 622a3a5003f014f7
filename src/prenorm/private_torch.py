"""What this package asks PyTorch for that has no public name: each with its reason, and what happens without it.

All are in torch 2.13.0 and 2.14.1, which the tests run with. A release that drops a name fails here, at import, with an
ImportError that says which; those that we can do without say what stands in for them. What runs beside a learner's code
(checks/child/driver.py) imports nothing of this package, and so has four such names of its own.
"""

import pkgutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _needed(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ImportError) as error:
        raise _missing(name) from error


def _missing(name: str) -> ImportError:
    return ImportError(
        f"prenorm needs {name}, which torch {torch.__version__} does not have; install torch 2.13.0 or 2.14.1, with "
        "which it is tested."
    )


# Kernels with a backward pass of their own have no rules for torch.func, vmap, tracing and dispatch modes. They are
# aliases of this module, because finding each in torch takes as long as calling it, and small norms are many.
are_functorch_transforms_active: Callable[[], bool] = _needed("torch._C._are_functorch_transforms_active")
len_torch_dispatch_stack: Callable[[], int] = _needed("torch._C._len_torch_dispatch_stack")
get_tracing_state: Callable[[], Any] = _needed("torch._C._get_tracing_state")
is_legacy_batchedtensor: Callable[[Tensor], bool] = _needed("torch._C._functorch.is_legacy_batchedtensor")
_needed("torch.autograd.forward_ad._current_level")  # of forward-mode differentiation; below 0 where there is none

# Values are checked under torch.func too, where a wrapper stands before the tensor that has them.
is_functorch_wrapped_tensor: Callable[[Tensor], bool] = _needed("torch._C._functorch.is_functorch_wrapped_tensor")
get_unwrapped: Callable[[Tensor], Tensor] = _needed("torch._C._functorch.get_unwrapped")

# Tensors without numbers, as export and shape inference have: there is nothing to check in them, or to draw.
FakeTensor: type[Tensor] = _needed("torch._subclasses.fake_tensor.FakeTensor")

# A check that compiled code and a GPU can hold: neither breaks the graph nor waits.
assert_async: Callable[[Tensor, str], None] = _needed("torch._assert_async")

# Whether hooks are registered for all modules, which a fast path would not call.
has_any_global_hook: Callable[[], bool] = _needed("torch.nn.modules.module._has_any_global_hook")
global_forward_pre_hooks: dict[int, Callable[..., Any]] = _needed("torch.nn.modules.module._global_forward_pre_hooks")

# What every module holds, read as attributes where it is used: a fast path looks at it without calling anything.
for _name in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
    if not hasattr(torch.nn.Module(), _name):
        raise _missing(f"torch.nn.Module().{_name}")


def set_group_timeout(timeout: timedelta, group: "ProcessGroup") -> None:
    """How long a collective of a group waits; without a way to say it half an hour, as a DeviceMesh makes groups."""
    older = getattr(torch.distributed.distributed_c10d, "_set_pg_timeout", None)
    set_timeout = getattr(torch.distributed, "set_timeout", older)  # public since torch 2.14
    if set_timeout is not None:
        set_timeout(timeout, group)


def calls_begun(group: "ProcessGroup") -> int:
    """How many collectives of a group this process has begun; 0 without a way to ask: then who hangs is guessed."""
    ask = getattr(group, "_get_sequence_number_for_group", None)
    return int(ask()) if ask else 0


def has_onednn_linear() -> bool:
    """Whether float32 products can go through oneDNN; where they cannot, MKL multiplies."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN. PyTorch's public functions take MKL for float32."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def layout_check(tensors: Sequence[Tensor]) -> Callable[[Sequence[Any]], bool]:
    """A function that says whether other objects are tensors of these classes, dtypes, shapes and strides, in order.

    One call of torch.compile's guards answers it for all of them. They refuse a tensor that is there twice; then, and
    where they are missing, each tensor is asked.
    """
    try:
        guards = pkgutil.resolve_name("torch._C._dynamo.guards.TensorGuards")
        check = guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        if check(*tensors):
            return lambda others: check(*others)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        pass
    known = _layouts(tensors)
    return lambda others: _layouts(others) == known


def _layouts(tensors: Sequence[Any]) -> list[Any]:
    return [
        isinstance(one, Tensor) and (type(one), one.dtype, one.device, one.shape, one.stride(), one.is_neg())
        for one in tensors
    ]


def has_static_size(size: Any) -> bool:
    """Whether compiled code is for this size alone; without a way to know, no: another kernel is taken."""
    try:  # slow to load, and there when code is compiled
        from torch.fx.experimental.symbolic_shapes import has_static_value
    except ImportError:
        return False
    return has_static_value(size)


def computes_now() -> bool:
    """Whether ops run eagerly, without tracing, dispatch modes or transforms.

    Not while PyTorch compiles, exports or traces (Inductor fuses a formula better), not under a dispatch mode (FLOP
    counters and tracers must see the formula's ops), and not under torch.func and forward-mode differentiation, which
    need rules that a kernel does not have.
    """
    return (
        not is_compiling()
        and not are_functorch_transforms_active()
        and not len_torch_dispatch_stack()
        and get_tracing_state() is None
        and forward_ad._current_level < 0
    )


is_compiling = torch.compiler.is_compiling


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile calls it and does not trace it
def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: they need rules that only formulas have."""
    return are_functorch_transforms_active() or forward_ad._current_level >= 0
