"""Causality, shown by changing one token at a time: on every path, outputs that it must not reach keep their bits."""

import io
from typing import Any

import pytest
import torch
from torch.export import Dim

from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerLM, use_backend

from ..oracle.inputs import integers, randomise, segments

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # torch says it of itself
    pytest.mark.usefixtures("shapes_unchecked"),
]

VOCAB, SEQ, LAYERS = 11, 14, 2
CUTS = (1, 4, 2, 1, 6)
OPTIONS: tuple[Any, ...] = ({}, {"window": 3, "num_kv_heads": 1, "qk_norm": True})
DOCUMENTS = ((0, 4), (1, 1), (-1, 2), (1, 5), (0, 2))  # (id, length): equal ids apart are two documents


def make(dtype, **options):
    config = ModelConfig(VOCAB, d_model=16, num_layers=LAYERS, num_heads=2, d_ff=12, max_seq_len=64, **options)
    return randomise(TransformerLM(config, dtype=dtype)).eval()


def plain(model):
    return model


def reference(model):
    def run(ids):
        with use_backend("reference"):
            return model(ids)

    return run


def in_pieces(*sizes):
    def path(model):
        def run(ids):
            cache = model.make_cache(len(ids), SEQ)
            return torch.cat([model(piece, cache=cache) for piece in ids.split(sizes, 1)], 1)

        return run

    return path


def with_gradients_in_pieces(model):
    run = in_pieces(*CUTS)(model)

    def with_gradients(ids):
        with torch.enable_grad():
            return run(ids)

    return with_gradients


def padded(left, *, cached):
    """Row i has i more tokens of padding than the first: on the left, or on the right."""

    def path(model):
        def run(ids):
            batch = len(ids)
            width = SEQ + batch - 1
            token_ids = torch.full((batch, width), 7)
            segment_ids = torch.full((batch, width), -1)
            starts = [i if left else batch - 1 - i for i in range(batch)]
            for row, start in enumerate(starts):
                token_ids[row, start : start + SEQ], segment_ids[row, start : start + SEQ] = ids[row], 0
            cache = model.make_cache(batch, SEQ) if cached else None
            cuts = [9, width - 9] if cached else [width]
            pieces = zip(token_ids.split(cuts, 1), segment_ids.split(cuts, 1), strict=True)
            y = torch.cat([model(t, segment_ids=s, cache=cache) for t, s in pieces], 1)
            return torch.stack([y[row, start : start + SEQ] for row, start in enumerate(starts)])

        return run

    return path


def checkpointed_with_dropout(model):
    model.train()

    def run(ids):
        torch.manual_seed(5)
        with torch.enable_grad():
            return model(ids, use_checkpointing=True)

    return run


def autocast(model):
    def run(ids):
        with torch.autocast("cpu", torch.bfloat16):
            return model(ids)

    return run


def compiled(model):
    return torch.compile(model, fullgraph=True)


def compiled_in_pieces(model):
    return in_pieces(*CUTS)(Compiled(model))


class Compiled:
    """A compiled model with the cache of the plain one. torch's code generator is left out: it is slow."""

    def __init__(self, model):
        self.make_cache, self.run = model.make_cache, torch.compile(model, fullgraph=True, backend="aot_eager")

    def __call__(self, ids, cache):
        return self.run(ids, cache=cache)


def exported(model):
    sizes = {0: Dim("batch"), 1: Dim("seq", max=64)}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (integers(2, 9, limit=VOCAB),), dynamic_shapes=(sizes,)), file)
    file.seek(0)
    return torch.export.load(file).module()


PATHS = {
    "plain": plain,
    "reference": reference,
    "chunks": in_pieces(*CUTS),
    "chunks with gradients": with_gradients_in_pieces,
    "token by token": in_pieces(*[1] * SEQ),
    "padded left": padded(True, cached=False),
    "padded right": padded(False, cached=False),
    "padded left, cached": padded(True, cached=True),
    "padded right, cached": padded(False, cached=True),
    "checkpointed with dropout": checkpointed_with_dropout,
    "autocast": autocast,
    "compiled": compiled,
    "compiled in chunks": compiled_in_pieces,
    "exported": exported,
}


@pytest.mark.sampled(16)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=["full", "window"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@torch.no_grad()
def test_a_token_reaches_itself_and_the_window_after_it_and_nobody_else(path, options, dtype):
    if path is checkpointed_with_dropout:
        options = {**options, "dropout": 0.2}
    check(path, make(dtype, **options), options)


QUANTIZED = {name: path for name, path in PATHS.items() if name not in ("checkpointed with dropout", "compiled")}


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("kind", "dtype", "options"),
    [("int8", torch.float32, OPTIONS[0]), ("int4", torch.bfloat16, OPTIONS[1])],
    ids=["int8, full", "int4, window"],
)
@pytest.mark.parametrize("path", QUANTIZED.values(), ids=QUANTIZED)
@torch.no_grad()
def test_so_it_is_in_a_quantised_model(path, options, kind, dtype):
    """The scale that a token's activations are rounded by is its own."""
    check(path, make(dtype, **options).quantize(kind), options)


def check(path, model, options):
    ids, run = integers(2, SEQ, limit=VOCAB), path(model)
    before = run(ids)
    reach = LAYERS * (options.get("window", SEQ) - 1) + 1  # each layer hands it on
    for token in range(SEQ):
        changed = ids.clone()
        changed[1, token] = (changed[1, token] + 1 + token % 3) % VOCAB
        same = (run(changed) == before).all(-1)
        assert same[0].all(), "another row"
        assert same[1, :token].all(), "an earlier token"
        assert same[1, token + reach :].all(), "a token beyond the window"
        assert not same[1, token]


def packed(model):
    return lambda ids, segment_ids: model(ids, segment_ids=segment_ids)


def packed_reference(model):
    def run(ids, segment_ids):
        with use_backend("reference"):
            return model(ids, segment_ids=segment_ids)

    return run


def packed_and_checkpointed_with_dropout(model):
    model.train()

    def run(ids, segment_ids):
        torch.manual_seed(5)
        with torch.enable_grad():
            return model(ids, segment_ids=segment_ids, use_checkpointing=True)

    return run


def packed_and_compiled(model):
    return packed(torch.compile(model, fullgraph=True, backend="aot_eager"))


class Packed(torch.nn.Module):
    """What torch.export takes: inputs by position."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, segment_ids):
        return self.model(ids, segment_ids=segment_ids)


def packed_and_exported(model):
    sizes = {0: Dim("batch"), 1: Dim("seq", max=64)}
    example = (integers(2, 9, limit=VOCAB), torch.zeros(2, 9, dtype=torch.int64))
    return torch.export.export(Packed(model), example, dynamic_shapes=(sizes, sizes)).module()


PACKED = (packed, packed_reference, packed_and_checkpointed_with_dropout, packed_and_compiled, packed_and_exported)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=["full", "window"])
@pytest.mark.parametrize("path", PACKED)
@torch.no_grad()
def test_a_token_reaches_its_own_document_alone(path, options, dtype):
    if path is packed_and_checkpointed_with_dropout:
        options = {**options, "dropout": 0.2}
    model, ids, row = make(dtype, **options), integers(2, SEQ, limit=VOCAB), segments(DOCUMENTS)
    numbers = segments([(number, length) for number, (_, length) in enumerate(DOCUMENTS)])
    segment_ids, run = row.repeat(2, 1), path(model)
    before = run(ids, segment_ids)
    for token in range(SEQ):
        changed = ids.clone()
        changed[1, token] = (changed[1, token] + 1) % VOCAB
        same = (run(changed, segment_ids) == before).all(-1)
        others = (numbers != numbers[token]) | (torch.arange(SEQ) < token)
        assert same[0].all()
        assert same[1, others & (row >= 0)].all()
        assert row[token] < 0 or not same[1, token]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_a_target_token_reaches_no_earlier_one_and_a_source_reaches_all(dtype, cached):
    config = EncoderDecoderConfig(VOCAB, 16, LAYERS, 2, max_seq_len=32)
    model = randomise(EncoderDecoder(config, dtype=dtype)).eval()
    source, target = integers(2, 6, limit=VOCAB), integers(2, SEQ, limit=VOCAB, seed=1)

    def run(source, target):
        if not cached:
            return model(source, target)
        cache = model.make_cache(source, SEQ)
        return torch.cat([model.decode(piece, cache=cache) for piece in target.split(CUTS, 1)], 1)

    before = run(source, target)
    for token in range(SEQ):
        changed = target.clone()
        changed[1, token] = (changed[1, token] + 1) % VOCAB
        same = (run(source, changed) == before).all(-1)
        assert same[0].all()
        assert same[1, :token].all()
        assert not same[1, token]
    for token in range(6):
        changed = source.clone()
        changed[1, token] = (changed[1, token] + 1) % VOCAB
        same = (run(changed, target) == before).all(-1)
        assert same[0].all()
        assert not same[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_source_document_reaches_the_target_document_of_its_id_alone(dtype):
    config = EncoderDecoderConfig(VOCAB, 16, LAYERS, 2, max_seq_len=32)
    model = randomise(EncoderDecoder(config, dtype=dtype)).eval()
    of_source, of_target = segments([(4, 3), (2, 1), (-1, 1), (9, 3)]), segments([(9, 4), (-1, 2), (4, 5), (2, 3)])
    source, target = integers(len(of_source), limit=VOCAB), integers(len(of_target), limit=VOCAB, seed=1)
    packed = {"source_segment_ids": of_source, "target_segment_ids": of_target}
    before = model(source, target, **packed)
    for token, document in enumerate(of_source):
        changed = source.clone()
        changed[token] = (changed[token] + 1) % VOCAB
        same = (model(changed, target, **packed) == before).all(-1)
        reached = (of_target == document) & (document >= 0)
        assert (same == ~reached)[of_target >= 0].all()
    for token, document in enumerate(of_target):
        changed = target.clone()
        changed[token] = (changed[token] + 1) % VOCAB
        same = (model(source, changed, **packed) == before).all(-1)
        others = (of_target != document) | (torch.arange(len(of_target)) < token)
        assert same[others & (of_target >= 0)].all()
        assert document < 0 or not same[token]
