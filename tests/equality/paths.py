"""The ways of running a model. Each is what a user would write, and gives the output with the parameters it came from.

A path that is whole runs one plain call's inputs; one for rows puts rows of different lengths together, and gives the
outputs of their tokens, row after row. Gradients are asked of the inputs and of the parameters that a path gives.
"""

import copy
import dataclasses
import random
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

from ..oracle.inputs import segments
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
    """Through a folder on disk, where the rotary pairs have another order, and their rows of weights with them."""
    assert isinstance(case.module, TransformerLM | EncoderDecoder)
    with tempfile.TemporaryDirectory() as folder:
        case.module.save_pretrained(folder)
        return type(case.module).from_pretrained(folder)(*case.inputs, **case.options), {}


def explicit_positions(case: Case) -> Ran:
    """What the positions are by default, said: 0, 1, 2, ... and again from 0 in each document; 0 for padding."""
    (x,), ids = case.inputs, case.options.get("segment_ids")
    seq = x.shape[len(case.cell.leading or ())]
    positions = torch.arange(seq)
    if ids is not None:
        positions = positions.repeat(*ids.shape[:-1], 1)
        for place in range(1, seq):
            goes_on = ids[..., place] == ids[..., place - 1]
            positions[..., place] = torch.where(goes_on, positions[..., place - 1] + 1, 0)
        positions = positions.masked_fill(ids < 0, 0)
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
        y = run_block(module, case.cell.every - 1, *case.inputs, use_checkpointing=use_checkpointing, **case.options)
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


def exported(case: Case) -> Ran:
    """A program for all sizes on disk, loaded and run; nothing of the package is needed for that."""
    with torch.no_grad():
        return _exported(case.cell.model)(*case.inputs, **case.options), {}


@lru_cache(maxsize=1)
def _exported(model: Cell) -> Any:
    example = Case(dataclasses.replace(model, leading=(3,) * len(model.leading or ()), seq=24))
    program = torch.export.export(
        example.module, example.inputs, example.options, dynamic_shapes=_dynamic_shapes(example)
    )
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, File(folder) / "model.pt2")
        return torch.export.load(File(folder) / "model.pt2").module()


def _dynamic_shapes(example: Case) -> Any:
    """Any batch, any number of tokens up to the model's, and of an encoder-decoder any number on each side."""
    batch = torch.export.Dim("batch", min=1)
    seq, source_seq = (torch.export.Dim(name, min=1, max=ROOM) for name in ("seq", "source_seq"))
    if example.cell.mask == "documents":  # both sides then have the same ids
        source_seq = seq
    if example.cell.subject == "encoder-decoder":
        inputs = {"source_ids": {0: batch, 1: source_seq}, "target_ids": {0: batch, 1: seq}}
    else:
        inputs = {"x" if example.cell.subject == "block" else "token_ids": {0: batch, 1: seq}}
    options: dict[str, Any] = {}
    for name, value in example.options.items():
        by_row = {0: batch, 1: source_seq if name.startswith("source") else seq}
        options[name] = {0: seq} if value.ndim == 1 else by_row
        if name == "mask":
            options[name] = {value.ndim - 1: seq} | ({value.ndim - 2: seq} if value.shape[-2] > 1 else {})
            options[name] |= {0: batch} if value.ndim == 4 else {}
    return inputs | options


def onnx_runtime(case: Case) -> Ran:
    """A file that other runtimes read, run by one of them."""
    session = _session(case.cell.model)
    given = [x.detach().numpy() for x in (*case.inputs, *case.options.values())]
    (y,) = session.run(None, {put.name: x for put, x in zip(session.get_inputs(), given, strict=True)})
    return torch.from_numpy(y), {}


@lru_cache(maxsize=1)
def _session(model: Cell) -> Any:
    import onnxruntime

    example = Case(dataclasses.replace(model, leading=(3,) * len(model.leading or ()), seq=24))
    shapes = tuple(_dynamic_shapes(example).values())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = File(folder) / "model.onnx"
        module = ByPosition(example.module, len(example.inputs), list(example.options))
        inputs = (*example.inputs, *example.options.values())
        torch.onnx.export(module, inputs, file, dynamic_shapes=(shapes,), dynamo=True, verbose=False)
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


class ByPosition(nn.Module):
    """A model all of whose arguments have a place: the exporter to ONNX takes no others."""

    def __init__(self, module: nn.Module, inputs: int, names: list[str]) -> None:
        super().__init__()
        self.module, self.inputs, self.names = module, inputs, names

    def forward(self, *given: Tensor) -> Tensor:
        """The model's output."""
        return self.module(*given[: self.inputs], **dict(zip(self.names, given[self.inputs :], strict=True)))


def compiled_cached(case: Case) -> Ran:
    """A chunk at a time, each through one graph; nothing is trained."""
    module = _compiled(case.cell.model, "aot_eager")
    with torch.no_grad():
        return torch.cat(list(_feed(case, _cache(case), _seq(case), module)), dim=-2), {}


# With a cache


def cached(case: Case) -> Ran:
    """A chunk at a time."""
    cache = _cache(case)
    with recording(case.cell.grad):
        return torch.cat(list(_feed(case, cache, _seq(case))), dim=-2), {}


def cached_recording(case: Case) -> Ran:
    """A chunk at a time, with gradients: of the tokens of a call, while those in the cache are constants."""
    return torch.cat(list(_feed(case, _cache(case), _seq(case))), dim=-2), named(case.module)


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


def _feed(case: Case, cache: Any, seq: int, compiled: Any = None) -> Iterator[Tensor]:
    """Give the model the tokens of a whole batch by chunks, with the part of each argument that belongs to a chunk."""
    module, start = case.module if compiled is None else compiled, 0
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
                    queries = slice(None) if case.cell.mask == "(..., 1, 1, kv)" else slice(start, stop)
                    options[name] = value[..., queries, :stop]
                else:
                    options[name] = value[..., start:stop]
            yield module(case.inputs[0][:, start:stop], **options, cache=cache)
        start = stop


# Rows of different lengths. Padding holds junk, which nobody may see.


def padded_left(case: Case) -> Ran:
    """Every row's tokens at its end."""
    longest = max(_lengths(case))
    return _padded(case, [(longest - length, 0) for length in _lengths(case)])


def padded_right(case: Case) -> Ran:
    """Every row's tokens at its beginning."""
    longest = max(_lengths(case))
    return _padded(case, [(0, longest - length) for length in _lengths(case)])


def padded_both(case: Case) -> Ran:
    """Some padding before each row, some after it."""
    longest = max(_lengths(case)) + 4
    lefts = [min(1 + 2 * row, longest - length) for row, length in enumerate(_lengths(case))]
    return _padded(case, [(left, longest - length - left) for left, length in zip(lefts, _lengths(case), strict=True)])


def _lengths(case: Case) -> list[int]:
    """Of each row; in an encoder-decoder of its target."""
    return list(case.cell.rows or ())


def _padded(case: Case, sides: list[tuple[int, int]]) -> Ran:
    ids = torch.stack(
        [_marks(left, length, right) for (left, right), length in zip(sides, _lengths(case), strict=True)]
    )
    rows = torch.stack([_surround(row[-1], *side) for row, side in zip(case.rows, sides, strict=True)])
    if case.cell.subject == "encoder-decoder":  # the sources, of other lengths, are padded the other way about
        sources = [row[0] for row in case.rows]
        longest = max(map(len, sources))
        gaps = [longest - len(source) for source in sources]
        turned = [(0, gap) if left else (gap, 0) for gap, (left, _) in zip(gaps, sides, strict=True)]
        of_source = torch.stack([_marks(lt, len(s), rt) for s, (lt, rt) in zip(sources, turned, strict=True)])
        padded = torch.stack([_surround(source, *side) for source, side in zip(sources, turned, strict=True)])
        y = case.module(padded, rows, source_segment_ids=of_source, target_segment_ids=ids)
    else:
        positions = None
        if case.cell.positions == "(..., seq)":
            given = [call.options["token_positions"] for call in case.calls]
            positions = torch.stack([_surround(row, *side) for row, side in zip(given, sides, strict=True)])
        y = case.module(rows, positions, segment_ids=ids)
    return y[ids >= 0], named(case.module)


def _marks(left: int, length: int, right: int) -> Tensor:
    return torch.tensor([-1] * left + [0] * length + [-2] * right, dtype=torch.int64)


def _surround(row: Tensor, left: int, right: int) -> Tensor:
    """Junk before and after a row: large numbers, or some token's id."""
    junk = 1e3 if row.is_floating_point() else 7
    before, after = (row.new_full((length, *row.shape[1:]), junk) for length in (left, right))
    return torch.cat((before, row, after))


def lists_through_pad(case: Case) -> Ran:
    """Lists of ids, as `generate` takes them."""
    ids, marks = pad([row[-1].tolist() for row in case.rows])
    if case.cell.subject != "encoder-decoder":
        y = case.module(ids, segment_ids=marks)
    else:
        sources, of_sources = pad([row[0].tolist() for row in case.rows])
        y = case.module(sources, ids, source_segment_ids=of_sources, target_segment_ids=marks)
    return y.flatten(0, 1) if marks is None else y[marks >= 0], named(case.module)


def rows_through_pad_sequence(case: Case) -> Ran:
    """PyTorch's way to put rows together, and their lengths made into segment ids."""

    def together(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        ids = [torch.zeros(len(row), dtype=torch.int64) for row in rows]
        return pad_sequence(rows, batch_first=True), pad_sequence(ids, batch_first=True, padding_value=-1)

    x, ids = together([row[-1] for row in case.rows])
    if case.cell.subject == "encoder-decoder":
        sources, of_sources = together([row[0] for row in case.rows])
        y = case.module(sources, x, source_segment_ids=of_sources, target_segment_ids=ids)
    elif case.cell.positions == "(..., seq)":
        positions, _ = together([call.options["token_positions"] for call in case.calls])
        y = case.module(x, positions, segment_ids=ids)
    else:
        y = case.module(x, segment_ids=ids)
    return y[ids >= 0], named(case.module)


def left_then_more(case: Case) -> Ran:
    """Prompts padded on the left, then tokens of their own for every row, one column at a time."""
    return _prompts_then_more(case, lambda gap, row: (gap, 0))


def right_then_more(case: Case) -> Ran:
    """Prompts padded on the right, then more."""
    return _prompts_then_more(case, lambda gap, row: (0, gap))


def both_then_more(case: Case) -> Ran:
    """Prompts padded on both sides, then more."""
    return _prompts_then_more(case, lambda gap, row: (min(row, gap) + 1, gap - min(row, gap) + 2))


def _prompts_then_more(case: Case, sides: Callable[[int, int], tuple[int, int]]) -> Ran:
    """The last tokens of every row, as many as the shortest has to spare, come after its prompt without padding."""
    more = max(0, min(_lengths(case)) - 1) // 2 + 1 if min(_lengths(case)) else 0
    prompts = [length - more for length in _lengths(case)]
    gaps = [max(prompts) - prompt for prompt in prompts]
    around = [sides(gap, row) for row, gap in enumerate(gaps)]
    marks = torch.stack([_marks(lt, prompt, rt) for prompt, (lt, rt) in zip(prompts, around, strict=True)])
    first = [_surround(row[-1][:n], *side) for row, n, side in zip(case.rows, prompts, around, strict=True)]
    rest = torch.stack([row[-1][n:] for row, n in zip(case.rows, prompts, strict=True)])
    cache = _ragged_cache(case, max(_lengths(case)))
    with recording(case.cell.grad):
        begun = _step(case, torch.stack(first), marks, cache)
        after = [_step(case, rest[:, place : place + 1], None, cache) for place in range(more)]
        rows = [
            torch.cat([begun[row][marks[row] >= 0], *(column[row] for column in after)]) for row in range(len(prompts))
        ]
        return torch.cat(rows), {}


def out_of_step(case: Case) -> Ran:
    """Calls in which every row has some padding, some tokens, some padding, or nothing at all."""
    chance = random.Random(case.cell.inputs)
    cache, fed = _ragged_cache(case, max(_lengths(case))), [0] * len(_lengths(case))
    outputs: list[list[Tensor]] = [[] for _ in fed]
    with recording(case.cell.grad):
        while fed != _lengths(case):
            takes = [chance.randint(0, min(6, n - held)) for n, held in zip(_lengths(case), fed, strict=True)]
            lefts = [chance.randint(0, 2) for _ in fed]
            width = max(left + take for left, take in zip(lefts, takes, strict=True))
            sides = [(left, width - left - take) for left, take in zip(lefts, takes, strict=True)]
            marks = torch.stack([_marks(lt, take, rt) for take, (lt, rt) in zip(takes, sides, strict=True)])
            parts = [row[-1][held : held + take] for row, held, take in zip(case.rows, fed, takes, strict=True)]
            x = torch.stack([_surround(part, *side) for part, side in zip(parts, sides, strict=True)])
            y = _step(case, x, marks, cache)
            for row, take in enumerate(takes):
                outputs[row].append(y[row][marks[row] >= 0])
                fed[row] += take
        return torch.cat([part for parts in outputs for part in parts]), {}


def _ragged_cache(case: Case, room: int) -> Any:
    """Room for the longest row, and not one token more."""
    if case.cell.subject != "encoder-decoder":
        return case.module.make_cache(len(case.rows), room)
    sources, of_sources = pad([row[0].tolist() for row in case.rows])
    return case.module.make_cache(sources, room, source_segment_ids=of_sources)


def _step(case: Case, x: Tensor, ids: Tensor | None, cache: Any) -> Tensor:
    call = case.module.decode if case.cell.subject == "encoder-decoder" else case.module
    return call(x, segment_ids=ids, cache=cache)


# Documents in one row


def packed(case: Case) -> Ran:
    """One after another, each with an id of its own."""
    return _packed(case, lambda number: 3 * number + 1, gap=0)


def packed_ids_repeated(case: Case) -> Ran:
    """Two ids in turn: a document is a run of equal ids, and equal ids apart are two documents."""
    return _packed(case, lambda number: number % 2, gap=0)


def packed_padding_between(case: Case) -> Ran:
    """Padding before, between and after the documents."""
    return _packed(case, lambda number: number + 2, gap=3)


def packed_in_another_order(case: Case) -> Ran:
    """The sources the other way round than the targets: who reads what is said by the ids."""
    return _packed(case, lambda number: 2 * number, gap=0, backwards=True)


def _packed(case: Case, identity: Callable[[int], int], gap: int, *, backwards: bool = False) -> Ran:
    """A row without a batch where the seed is odd, a batch of one where it is even: leading dims are any number."""

    def together(rows: list[Tensor], *, backwards: bool = False) -> Tensor:
        parts = [_surround(row, gap, 0) for row in rows]
        row = torch.cat([*(reversed(parts) if backwards else parts), _surround(rows[0][:0], gap, 0)])
        return row if case.cell.inputs % 2 else row[None]

    def marks(rows: list[Tensor], *, backwards: bool = False) -> Tensor:
        runs = [((-1, gap), (identity(number), len(row))) for number, row in enumerate(rows)]
        row = segments([*(run for pair in (reversed(runs) if backwards else runs) for run in pair), (-1, gap)])
        return row if case.cell.inputs % 2 else row[None]

    rows = [row[-1] for row in case.rows]
    x, ids = together(rows), marks(rows)
    if case.cell.subject == "encoder-decoder":
        sources = [row[0] for row in case.rows]
        of_sources = marks(sources, backwards=backwards)
        y = case.module(
            together(sources, backwards=backwards), x, source_segment_ids=of_sources, target_segment_ids=ids
        )
    elif case.cell.positions == "(..., seq)":
        y = case.module(x, together([call.options["token_positions"] for call in case.calls]), segment_ids=ids)
    else:
        y = case.module(x, segment_ids=ids)
    return y[ids >= 0], named(case.module)


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
    "the last chunk trained": Path(cached_recording, "last chunk"),
    "rolling cache": Path(cached),
    "padded on the left": Path(padded_left, "all"),
    "padded on the right": Path(padded_right, "all"),
    "padded on both sides": Path(padded_both, "all"),
    "lists through pad": Path(lists_through_pad, "all"),
    "rows through pad_sequence": Path(rows_through_pad_sequence, "all"),
    "padded on the left, cached, then more": Path(left_then_more),
    "padded on the right, cached, then more": Path(right_then_more),
    "padded on both sides, cached, then more": Path(both_then_more),
    "rows out of step in a cache": Path(out_of_step),
    "packed documents": Path(packed, "all"),
    "packed documents, ids repeated": Path(packed_ids_repeated, "all"),
    "packed documents, padding between": Path(packed_padding_between, "all"),
    "packed in another order": Path(packed_in_another_order, "all"),
    "checkpointed": Path(checkpointed, "all"),
    "checkpointed, dropout on": Path(checkpointed_with_dropout, "all", twin=not_checkpointed_with_dropout),
    "functional_call": Path(functional_call, "all"),
    "made on meta, assigned": Path(meta_assigned, "all"),
    "made on meta, to_empty": Path(meta_emptied, "all"),
    "to bfloat16 and back": Path(bfloat16_and_back, "all"),
    "to float64 and back": Path(float64_and_back, "all"),
    "saved and loaded": Path(saved_and_loaded),
    "explicit positions": Path(explicit_positions, "all"),
    "explicit mask": Path(explicit_mask, "all"),
    "compiled (aot_eager)": Path(compiled_aot_eager, "all"),
    "compiled (inductor)": Path(compiled_inductor, "all"),
    "compiled with a cache": Path(compiled_cached),
    "exported": Path(exported),
    "ONNX Runtime": Path(onnx_runtime),
}

# Written, but not working yet: no cells are drawn for them.
NOT_YET: dict[str, Path] = {}
