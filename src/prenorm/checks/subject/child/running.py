"""One call of a block: what it gives, its gradients, and what is watched meanwhile. It judges nothing."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .dtypes import Dtypes
from .errors import described, entered
from .scramble import OtherAngles, scrambled
from .seen import Seen
from .tensors import first_tensor, plain, set_values
from .trace import Trace, traced
from .watch import Watch

Entries = dict[str, Any]
Call = Callable[[list[Any], Entries], Any]
"""Calls the block with inputs and keywords."""


def run(request: Entries, block: nn.Module, call: Call) -> Entries:
    """Set "parameters", call the block with "inputs" and "keywords", and send "cotangent" back through it.

    Gives {"y", "x_after", "requires_grad"} and, with a cotangent, {"gradients", "x_gradient"} (None where there is
    none); with "trace" also {"operations", "created" (shapes of new constant tensors), "modules_created", "masked"
    (whether masked_fill filled anything), "random" (the statement that first drew random numbers)}. "scramble" puts
    random numbers in place of tables, and of every sine and cosine. "watch" adds "sites" to an error: where the
    learner's code changed tensors in place. "dtypes" adds "stray", also to an error: where what failed, or came
    out, left the input's dtype (see dtypes.py), or None. "seen" names modules, and adds what the first call of each
    was given and gave, also to an error (see seen.py). An error has "entered": whether the block was called, or
    the line's own arguments raise.
    """
    watch = Watch() if request.get("watch") else None
    dtypes = Dtypes(block, request["inputs"][0].dtype) if request.get("dtypes") else None
    seen = Seen(block, request.get("seen") or ())
    try:
        with seen.watching():
            reply = _run(request, block, call, watch, dtypes)
    except Exception as error:
        more: Entries = {"entered": entered(error, block)}
        more |= {} if watch is None else {"sites": watch.sites}
        more |= {} if dtypes is None else {"stray": dtypes.failed}
        return {"error": described(error) | more | {"seen": seen.calls}}
    return reply | {"seen": seen.calls}


def _run(request: Entries, block: nn.Module, call: Call, watch: Watch | None, dtypes: Dtypes | None) -> Entries:
    block.train(request.get("training", False))
    set_values(block, request.get("parameters") or {})
    cotangent = request.get("cotangent")
    inputs = [value.clone() if isinstance(value, Tensor) else value for value in request["inputs"]]
    keywords = {name: v.clone() if isinstance(v, Tensor) else v for name, v in request.get("keywords", {}).items()}
    leaf = inputs[0]
    if cotangent is not None:
        leaf.requires_grad_()
        inputs[0] = leaf.clone()  # what is changed in place may not be a leaf
        block.zero_grad(set_to_none=True)
    trace = Trace() if request.get("trace") else None
    with contextlib.ExitStack() as stack:
        if (seed := request.get("seed")) is not None:
            torch.manual_seed(seed)
        if cotangent is None:
            stack.enter_context(torch.no_grad())
        if (scramble := request.get("scramble")) is not None:
            stack.enter_context(scrambled(block, scramble))
            stack.enter_context(OtherAngles(scramble))
        for mode in (watch, dtypes):
            if mode is not None:
                stack.enter_context(mode)
        if trace is not None:
            stack.enter_context(traced(block, trace))
        y = first_tensor(call(inputs, keywords), inputs[0].shape)
    reply = {"y": plain(y), "x_after": plain(inputs[0]), "requires_grad": y.requires_grad}
    if dtypes is not None:
        reply["stray"] = dtypes.of(y)
    if trace is not None:
        reply["operations"] = sorted(trace.operations)
        reply["created"] = sorted(map(list, trace.created))  # as they arrive from a sandbox
        reply["modules_created"] = trace.modules_created
        reply["masked"] = trace.masked
        reply["random"] = trace.random
    if cotangent is not None:
        if y.requires_grad:
            y.backward(cotangent.to(y.dtype))
        reply["gradients"] = {
            name: None if p.grad is None else plain(p.grad)
            for name, p in block.named_parameters(remove_duplicate=False)
        }
        reply["x_gradient"] = None if leaf.grad is None else plain(leaf.grad)
    return reply
