"""Which tensors a kernel with a backward pass of its own may take."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

ORDINARY = (Tensor, Parameter)
# Names of this module, because finding each in torch takes as long as calling it, and small norms are many.
are_functorch_transforms_active = torch._C._are_functorch_transforms_active
get_tracing_state = torch._C._get_tracing_state
is_compiling = torch.compiler.is_compiling
is_exporting = torch.compiler.is_exporting
len_torch_dispatch_stack = torch._C._len_torch_dispatch_stack


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors, computed now, with nothing that looks on.

    Subclasses are not: fake and distributed tensors have no data here.
    """
    return computes_now() and all(type(x) in ORDINARY for x in tensors)


def computes_now() -> bool:
    """Whether an op is computed when it is called, and nothing looks on.

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


def is_held_in_a_graph() -> bool:
    """Whether code is being compiled that may hold an op of ours.

    What is exported must run without this package, and torch.func has no rules for custom ops.
    """
    return is_compiling() and not is_exporting() and not _is_transformed()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # compilers ask it, and do not look inside
def _is_transformed() -> bool:
    return are_functorch_transforms_active()
