"""Which tensors a kernel with a backward pass of its own may take."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors, computed now, with nothing that looks on.

    Not while PyTorch compiles, exports or traces (Inductor fuses a formula better), not under a dispatch mode (FLOP
    counters and tracers must see the formula's ops), not for subclasses (fake and distributed tensors have no data
    here), and not under torch.func and forward-mode differentiation, which need rules that a kernel does not have.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
        and all(type(x) in (Tensor, Parameter) for x in tensors)
        and not any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))
    )
