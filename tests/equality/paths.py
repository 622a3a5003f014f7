"""The ways of running a model. Each is what a user would write, and gives the output with the parameters it came from.

A path that is whole runs one plain call's inputs; one for rows puts rows of different lengths together, and gives the
outputs of their tokens, row after row. Gradients are asked of the inputs and of the parameters that a path gives.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path as File
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from prenorm import EncoderDecoder, TransformerLM, use_backend
from prenorm.blocks.activation_checkpointing import run_block
from prenorm.generation.padding import pad

from .cases import Case, build
from .cells import ROOM, Cell

Ran = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Path:
    """How to run, and what may be asked of it: gradients of everything, of the last chunk's input alone, or none.

    With `twin` there is no oracle: the path is another's equal, bit by bit, in outputs and gradients.
    """

    run: Callable[[Case], Ran]
    trains: Literal["all", "last chunk", "nothing"] = "nothing"
    twin: Callable[[Case], Ran] | None = None


# One plain call


def plain(case: Case) -> Ran:
    """As it stands: the kernels that the table chooses."""
    return case.module(*case.inputs, **case.options), named(case.module)


def reference(case: Case) -> Ran:
    """The plain formulas, which the kernels stand in for."""
    with use_backend("reference"):
        return case.module(*case.inputs, **case.options), named(case.module)


def without_grad(case: Case) -> Ran:
    """Nothing recorded."""
    with torch.no_grad():
        return case.module(*case.inputs, **case.options), {}


def inferred(case: Case) -> Ran:
    """Nothing recorded, and nothing to be used in training later."""
    with torch.inference_mode():
        return case.module(*case.inputs, **case.options), {}


def functional_call(case: Case) -> Ran:
    """A module with other weights, given these as arguments."""
    other = build(dataclasses.replace(case.cell, weights=case.cell.weights + 1), case.dtype)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in case.module.named_parameters()}
    return torch.func.functional_call(other, weights, case.inputs, case.options), weights


def meta_assigned(case: Case) -> Ran:
    """Made without memory; the tensors of a state dict become its weights."""
    with torch.device("meta"):
        module = build(case.cell, case.dtype, weights=False)
    module.load_state_dict({name: weight.clone() for name, weight in case.module.state_dict().items()}, assign=True)
    module.requires_grad_()
    return module(*case.inputs, **case.options), named(module)


def meta_emptied(case: Case) -> Ran:
    """Made without memory, given memory with anything in it, then weights."""
    with torch.device("meta"):
        module = build(case.cell, case.dtype, weights=False)
    module.to_empty(device="cpu").load_state_dict(case.module.state_dict())
    return module(*case.inputs, **case.options), named(module)


def bfloat16_and_back(case: Case) -> Ran:
    """The weights are numbers of bfloat16 already, so that only what is no weight could suffer."""
    module = copy.deepcopy(case.module).to(torch.bfloat16).to(case.dtype)
    return module(*case.inputs, **case.options), named(module)


def float64_and_back(case: Case) -> Ran:
    """Wider and back."""
    module = copy.deepcopy(case.module).double().to(case.dtype)
    return module(*case.inputs, **case.options), named(module)


def saved_and_loaded(case: Case) -> Ran:
    """Through a folder on disk."""
    assert isinstance(case.module, TransformerLM | EncoderDecoder)
    with tempfile.TemporaryDirectory() as folder:
        case.module.save_pretrained(folder)
        module = type(case.module).from_pretrained(folder)
    return module(*case.inputs, **case.options), named(module)


def explicit_positions(case: Case) -> Ran:
    """What the positions are by default, said: 0, 1, 2, ... and again from 0 in each document."""
    (x,), ids = case.inputs, case.options.get("segment_ids")
    seq = x.shape[len(case.cell.leading or ())]
    positions = torch.arange(seq)
    if ids is not None:
        positions = positions.repeat(*ids.shape[:-1], 1)
        for place in range(1, seq):
            goes_on = ids[..., place] == ids[..., place - 1]
            positions[..., place] = torch.where(goes_on, positions[..., place - 1] + 1, 0)
    return case.module(x, positions, **case.options), named(case.module)


def explicit_mask(case: Case) -> Ran:
    """A block that sees both ways, with a mask that says what causal and window would."""
    (x,), options = case.inputs, dict(case.options)
    module = build(case.cell, case.dtype, causal=False, window=None)
    seq = x.shape[-2]
    seen = torch.ones(seq, seq, dtype=torch.bool).tril()
    if case.cell.window is not None:
        seen = seen.triu(1 - case.cell.window)
    mask = options.pop("mask", torch.ones(seq, seq, dtype=torch.bool))
    return module(x, mask=mask & seen, **options), named(module)


def checkpointed(case: Case) -> Ran:
    """In training, with the insides of the blocks computed twice."""
    return _in_training(case, case.cell.every or 0, dropout=0.0)


def checkpointed_with_dropout(case: Case) -> Ran:
    """Both times the same is dropped."""
    return _in_training(case, case.cell.every or 0, dropout=0.3)


def not_checkpointed_with_dropout(case: Case) -> Ran:
    """The same run with everything kept."""
    return _in_training(case, 0, dropout=0.3)


def _in_training(case: Case, use_checkpointing: int, dropout: float) -> Ran:
    module = build(case.cell, case.dtype, dropout=dropout).train()
    torch.manual_seed(case.cell.inputs)
    if case.cell.subject == "block":  # one alone: it is the number `every` - 1, so that it is its turn
        y = run_block(
            module, case.cell.every - 1, *case.inputs, use_checkpointing=use_checkpointing, **case.options
        )
    else:
        y = module(*case.inputs, use_checkpointing=use_checkpointing, **case.options)
    return y, named(module)


# Compiled and exported


def compiled_aot_eager(case: Case) -> Ran:
    """One graph, forward and backward, for all sizes, run by PyTorch's own operators."""
    module = _compiled(case.cell.model, "aot_eager")
    return module(*case.inputs, **case.options), named(module._orig_mod)


def compiled_inductor(case: Case) -> Ran:
    """One graph, forward and backward, for all sizes, as code that is generated."""
    module = _compiled(case.cell.model, "inductor")
    return module(*case.inputs, **case.options), named(module._orig_mod)


@lru_cache(maxsize=1)
def _compiled(model: Cell, backend: str) -> Any:
    torch.compiler.reset()  # torch compiles a function for a few modules only
    return torch.compile(build(model, getattr(torch, model.dtype)), fullgraph=True, dynamic=True, backend=backend)


# With a cache


def cached(case: Case) -> Ran:
    """A chunk at a time."""
    cache = _cache(case)
    with recording(case.cell.grad):
        return torch.cat(list(_feed(case, cache, _seq(case))), dim=-2), {}


def cached_at_once(case: Case) -> Ran:
    """All in one call, in which nothing is a constant yet."""
    (y,) = _feed(case, _cache(case), _seq(case))
    return y, named(case.module)


def cached_again(case: Case) -> Ran:
    """A cache that has held something else, was reset, and is filled again."""
    cache = _cache(case)
    with recording(case.cell.grad):
        for _ in range(2):
            y = torch.cat(list(_feed(case, cache, _seq(case))), dim=-2)
            cache.reset()
        return y, {}


def _seq(case: Case) -> int:
    return case.inputs[-1].shape[1]


def _cache(case: Case) -> Any:
    batch, room = case.inputs[0].shape[0], _seq(case) + case.cell.inputs % 3
    if case.cell.subject == "encoder-decoder":
        return case.module.make_cache(case.inputs[0], max(1, room), **_of_the_source(case.options))
    return case.module.make_cache(batch, max(1, room))


def _of_the_source(options: dict[str, Any]) -> dict[str, Any]:
    return {name: ids for name, ids in options.items() if name == "source_segment_ids"}


def _feed(case: Case, cache: Any, seq: int) -> Iterator[Tensor]:
    """Give the model the tokens of a whole batch by chunks, with the part of each argument that belongs to a chunk."""
    start = 0
    for size in case.cell.chunks(seq):
        stop = start + size
        if case.cell.subject == "encoder-decoder":
            ids = case.options.get("target_segment_ids")
            own = None if ids is None else ids[:, start:stop]
            yield case.module.decode(case.inputs[1][:, start:stop], segment_ids=own, cache=cache)
        else:
            options = {}
            for name, value in case.options.items():
                if name == "mask":
                    options[name] = value[..., :stop] if value.shape[-2] == 1 else value[..., start:stop, :stop]
                else:
                    options[name] = value[..., start:stop]
            yield case.module(case.inputs[0][:, start:stop], **options, cache=cache)
        start = stop


def recording(grad: str | None) -> Any:
    """The context in which gradients are recorded, or not."""
    return {"recorded": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[
        str(grad)
    ]()


def named(module: nn.Module) -> dict[str, Tensor]:
    """The parameters."""
    return dict(module.named_parameters())


PATHS: dict[str, Path] = {
    "plain": Path(plain, "all"),
    "the reference formulas": Path(reference, "all"),
    "under no_grad": Path(without_grad),
    "under inference_mode": Path(inferred),
    "chunks with a cache": Path(cached),
    "token by token": Path(cached),
    "all at once with a cache": Path(cached_at_once, "all"),
    "a cache used again": Path(cached_again),
    "rolling cache": Path(cached),
    "checkpointed": Path(checkpointed, "all"),
    "checkpointed, dropout on": Path(checkpointed_with_dropout, "all", twin=not_checkpointed_with_dropout),
    "functional_call": Path(functional_call, "all"),
    "made on meta, assigned": Path(meta_assigned, "all"),
    "made on meta, to_empty": Path(meta_emptied, "all"),
    "to bfloat16 and back": Path(bfloat16_and_back, "all"),
    "to float64 and back": Path(float64_and_back, "all"),
    "saved and loaded": Path(saved_and_loaded, "all"),
    "explicit positions": Path(explicit_positions, "all"),
    "explicit mask": Path(explicit_mask, "all"),
    "compiled (aot_eager)": Path(compiled_aot_eager, "all"),
    "compiled (inductor)": Path(compiled_inductor, "all"),
}
